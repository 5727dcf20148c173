# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What the command lines of all tools share."""
import sys
from argparse import ArgumentParser, ArgumentTypeError
from contextlib import contextmanager

from us3l_mm.models.layers import Subnet

# What the checks of this package raise. Others are defects of a program.
MISTAKES = (ImportError, OSError, TypeError, ValueError)


def subnet_argument(text: str) -> Subnet:
    """The sub-network that ``text`` names.

    Raises:
        ArgumentTypeError: With what is allowed, which argparse prints.
    """
    try:
        return Subnet.of(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def add_common_flags(parser: ArgumentParser) -> None:
    """Add ``--trust-pickle`` and ``--debug``."""
    parser.add_argument(
        '--trust-pickle', action='store_true',
        help='read files of weights even if that executes code in them; only '
        'for files whose writer you trust')
    parser.add_argument(
        '--debug', action='store_true',
        help='show the whole traceback of an error')


@contextmanager
def errors_as_sentences(tool: str, debug: bool = False):
    """End the program with one sentence if the block meets a mistake.

    Args:
        tool (str): The name that precedes the sentence.
        debug (bool): Whether to raise the error instead, so that Python shows
            its traceback. Defaults to False.
    """
    try:
        yield
    except MISTAKES as error:
        if debug:
            raise
        sys.exit(f'{tool}: {error}')
