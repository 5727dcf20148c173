# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The command ``us3l``, whose verbs are the tools."""
import sys
from importlib import import_module
from typing import Optional, Sequence

from .shipped import shipped
from .stack import problem
from .version import __version__

# Verb: the file in tools/, and what it is for.
VERBS = dict(
    pretrain=('pretrain', 'pre-train on a folder of your own images'),
    evaluate=('evaluate_widths', 'accuracy, size and latency of sub-networks'),
    slice=('slice_checkpoint', 'write one sub-network as an ordinary network'),
    detect=('detect_image', 'draw what a detector finds in an image'),
    train=('train', 'train from a config file'),
    test=('test', 'test a classifier or a detector'),
    flops=('get_flops', 'parameters and multiply-accumulates of a config'),
    list=('list_recipes', 'the recipes, what each is for, and its cost'),
    doctor=('doctor', 'what is installed, and what is missing'),
)


def usage() -> str:
    """What ``us3l --help`` prints."""
    lines = [f'  {verb:10}{what}' for verb, (_, what) in VERBS.items()]
    return '\n'.join([
        'usage: us3l VERB ...', '',
        'Pre-train one network once, and use it at every size.', '', *lines,
        '', 'us3l VERB --help lists the flags of a verb.'])


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run a verb with the arguments behind it."""
    verb, *arguments = [*(sys.argv[1:] if argv is None else argv)] or ['-h']
    if verb in ('-h', '--help', 'help'):
        print(usage())
        return
    if verb in ('-V', '--version'):
        print(__version__)
        return
    if verb not in VERBS:
        sys.exit(f'us3l: there is no verb {verb!r}.\n\n{usage()}')
    missing = problem()
    if missing and verb != 'doctor':
        sys.exit(f'us3l {verb}: {missing}')
    tools = str(shipped('tools'))
    if tools not in sys.path:
        sys.path.insert(0, tools)
    sys.argv[0] = f'us3l {verb}'  # what the parsers call themselves
    import_module(VERBS[verb][0]).main(arguments)
