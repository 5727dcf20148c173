# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Arguments of the benchmarks, checked when they are parsed."""
from argparse import ArgumentTypeError
from pathlib import Path

import torch

from us3l_mm.apis.command_line import OptionsAction, subnet_argument
from us3l_mm.evaluation.latency import check_device
from us3l_mm.fileio import check_writable

# The keys of a config that a benchmark of a model reads.
READ = {'custom_imports', 'default_hooks', 'default_scope', 'model'}
RECIPE = (Path(__file__).parents[2] /
          'configs/us3l/us3l_resnet18_4xb128-coslr-400e_cifar10.py')


def at_least(least):
    """A type for argparse: an integer that is not below ``least``."""

    def integer(text):
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise ArgumentTypeError(
                f'an integer of at least {least} is needed, got {text!r}')
        return value

    return integer


def width_argument(text):
    """A type for argparse: a width."""
    return subnet_argument(text).width


def device(text):
    """A type for argparse: a device of this machine."""
    try:
        check_device(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
    return text


def new_file(text):
    """A type for argparse: a file that can be written."""
    try:
        check_writable(text, __file__)
    except (OSError, ValueError) as error:
        raise ArgumentTypeError(str(error)) from None
    return text


def add_recipe(parser):
    """Add ``--config`` and ``--cfg-options``."""
    parser.add_argument(
        '--config', default=str(RECIPE), help='config of a pre-training '
        '(default: the recipe of a ResNet-18 on\nCIFAR-10)')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction,
                        metavar='KEY=VALUE', help='changes to the config')


def add_shared(parser, rounds, default_device=None):
    """Add ``--rounds``, ``--device``, ``--json`` and ``--debug``."""
    if default_device is None:
        default_device = 'cuda' if torch.cuda.is_available() else 'cpu'
    parser.add_argument(
        '--rounds', type=at_least(1), default=rounds,
        help=f'timed rounds after one warm-up (default: {rounds})')
    parser.add_argument('--device', type=device, default=default_device,
                        help=f'default: {default_device}')
    parser.add_argument('--json', type=new_file, metavar='FILE',
                        help='also write the figures to this file')
    parser.add_argument('--debug', action='store_true',
                        help='show the whole traceback of an error')
