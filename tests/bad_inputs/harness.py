# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What every tool owes its user for a bad input."""
import importlib.util
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Set
from unittest import mock

ROOT = Path(__file__).parents[2]
MAX_LINES, MAX_SECONDS = 14, 10


@dataclass
class Outcome:
    """How a tool ended.

    Attributes:
        code (int): The exit code.
        output (str): What it wrote to standard output and standard error.
        written (set[str]): The files and folders that it made.
        seconds (float): How long it took.
    """

    code: int
    output: str
    written: Set[str]
    seconds: float


def main_of(tool: str) -> Callable[[list], None]:
    """``main`` of a tool, such as 'train' for ``tools/train.py``."""
    path = ROOT / 'tools' / f'{tool}.py'
    spec = importlib.util.spec_from_file_location(f'{path.stem}_tool', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def run(main, argv, tmp_path, capsys) -> Outcome:
    """Call ``main(argv)`` in ``tmp_path``, as a program of its own.

    An error that the tool does not turn into a message is raised.
    """
    before, folder = set(tmp_path.rglob('*')), os.getcwd()
    capsys.readouterr()
    start, code = time.perf_counter(), 0
    os.chdir(tmp_path)
    try:
        with mock.patch.dict(os.environ):
            main([str(word) for word in argv])
    except SystemExit as end:
        code = end.code
    finally:
        os.chdir(folder)
    seconds = time.perf_counter() - start
    output = ''.join(capsys.readouterr())
    if isinstance(code, str):  # Python prints it and exits with 1
        output, code = f'{output}{code}\n', 1
    written = {
        str(path.relative_to(tmp_path))
        for path in set(tmp_path.rglob('*')) - before}
    return Outcome(code or 0, output, written, seconds)


def check(outcome: Outcome, *needles: str) -> None:
    """Assert that a bad input was refused as the user would want it.

    Args:
        outcome (Outcome): What :func:`run` returned.
        *needles (str): What the message has to contain: the value, and the
            way out.
    """
    output = outcome.output
    assert outcome.code != 0, output
    assert 'Traceback' not in output, output
    for needle in needles:
        assert needle in output, output
    assert len(output.splitlines()) <= MAX_LINES, output
    assert not outcome.written
    assert outcome.seconds < MAX_SECONDS
