# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What the command lines of all tools share."""
import dis
import gc
import os.path as osp
import re
import sys
import traceback
from argparse import ArgumentParser, ArgumentTypeError
from contextlib import AbstractContextManager
from functools import cache
from time import sleep
from typing import Callable

from mmengine.config import DictAction
from torch import OutOfMemoryError

from us3l_mm.models.layers import Subnet
from .launching.config import map_texts
from .launching.processes import get_rank

# What the checks of this package raise. Others are defects of a program.
MISTAKES = (ImportError, OSError, TypeError, ValueError)
PACKAGE = osp.dirname(osp.dirname(osp.abspath(__file__)))
REPORT = (
    'The tool did not expect this error. To report it, open an issue of '
    'us3l_mm with the command, this traceback, and the config that the run '
    'saved in its work dir.')
# Seconds in which the launcher ends the other processes.
PATIENCE = 10
# Stands for a blank, which MMEngine's parser would delete.
BLANK = '\0'


def subnet_argument(text: str) -> Subnet:
    """The sub-network that ``text`` names.

    Raises:
        ArgumentTypeError: With what is allowed, which argparse prints.
    """
    try:
        return Subnet.of(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


class OptionsAction(DictAction):
    """MMEngine's ``DictAction``, which keeps the blanks in a value.

    Blanks beside commas and brackets separate the elements of a list and are
    left out, as before. A text in quotation marks of its own, which the shell
    has to leave there, is not divided at commas. A word without ``=`` ends the
    program.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        """Add the options in ``values`` to the namespace."""
        for value in values:
            key, equals, text = value.partition('=')
            if not key or not equals:
                parser.error(
                    f'{option_string} takes KEY=VALUE, got {value!r}; '
                    'put a value with blanks into quotation marks.')
            if any(
                    text.count(left) != text.count(right)
                    for left, right in ('()', '[]')):
                parser.error(f'{option_string} {value}: its brackets do not '
                             'match.')
        kept = [re.sub(r'(?<![\[(,=]) (?![\]),])', BLANK, v) for v in values]
        super().__call__(parser, namespace, kept, option_string)
        options = getattr(namespace, self.dest)
        for key, _, text in (value.partition('=') for value in values):
            if len(text) > 1 and text[0] == text[-1] and text[0] in '\'"':
                options[key] = text[1:-1]  # a text as it is
        setattr(
            namespace, self.dest,
            map_texts(options, lambda text: text.replace(BLANK, ' ').strip()))


def add_common_flags(parser: ArgumentParser) -> None:
    """Add ``--trust-pickle`` and ``--debug``."""
    parser.add_argument(
        '--trust-pickle', action='store_true',
        help='read files of weights even if that executes code in them; only '
        'for files whose writer you trust')
    parser.add_argument('--debug', action='store_true',
                        help='show the whole traceback of an error')


@cache
def leave_libraries_alone() -> None:
    """Take what a program has imported out of garbage collections.

    A data set of MMEngine collects garbage when it is built, which takes a
    quarter of a second if every object of every library is visited.
    """
    gc.freeze()


class errors_as_sentences(AbstractContextManager):
    """End the program with one sentence if the block meets a mistake.

    A mistake is an error of a type in ``MISTAKES``, or any error that code
    raises on purpose. During training only errors that this package raises
    are, and those of files and memory. Everything else keeps its traceback,
    followed by how to report it.

    Of several processes the first one reports. The others end a little later,
    so that the same error is not printed by each of them.

    Args:
        tool (str): The name that precedes the sentence.
        debug (bool): Whether to raise the error instead, so that Python shows
            its traceback. Defaults to False.
        is_training (callable): Whether training has begun. Defaults to a
            function that says False.
    """

    def __init__(self, tool: str, debug: bool = False,
                 is_training: Callable[[], bool] = lambda: False):
        self.tool, self.debug, self.is_training = tool, debug, is_training
        leave_libraries_alone()

    def __exit__(self, kind, error, trace):
        if not isinstance(error, Exception):
            return
        if not self._is_mistake(error):
            # Python 3.10 has no notes.
            getattr(error, 'add_note', print)(REPORT)
            return
        if self.debug:
            return
        rank, tool = get_rank(), self.tool
        if rank > 0:
            sleep(PATIENCE)
            tool += f', process {rank}'
        sys.exit(f'{tool}: {sentence(error)}')

    def _is_mistake(self, error: Exception) -> bool:
        if isinstance(error,
                      (OSError, MemoryError,
                       OutOfMemoryError)) or ('allocate memory' in str(error)):
            return True
        if self.is_training():
            return raised_on_purpose(error, PACKAGE)
        return isinstance(error, MISTAKES) or raised_on_purpose(error)


def raised_on_purpose(error: Exception, folder: str = '') -> bool:
    """Whether a ``raise`` or ``assert`` made ``error``.

    Others come from an operation that failed, such as a look-up.

    Args:
        error (Exception): An error that was caught.
        folder (str): Where the file with the ``raise`` is. Defaults to
            anywhere.
    """
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    return (code.co_filename.startswith(folder)
            and dis.opname[code.co_code[trace.tb_lasti]] == 'RAISE_VARARGS')


def _while_building(error: Exception) -> str:
    """What MMEngine was building when ``error`` came up, as a beginning."""
    kind = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == 'build_from_cfg':
            kind = frame.f_locals.get('cfg', {}).get('type')
    return '' if kind is None else (
        f'{getattr(kind, "__name__", kind)} cannot be built from its '
        'arguments in the config: ')


def sentence(error: Exception) -> str:
    """The message of ``error`` for a user."""
    if isinstance(error, KeyError) and error.args:  # Python quotes its text
        return str(error.args[0])
    # An assertion may have nothing but its condition.
    text = str(error) or (f'{type(error).__name__}: ' + str(
        traceback.extract_tb(error.__traceback__)[-1].line))
    if not isinstance(error, OSError) and (not str(error)
                                           or not raised_on_purpose(error)):
        text = _while_building(error) + text
    if text.startswith('Caught ') and 'Original Traceback' in text:
        return text.strip().splitlines()[-1]  # of a worker that loads data
    return text
