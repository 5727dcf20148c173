# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The launchers of tools/, with forks in place of new interpreters.

The shell script, torchrun with its agent, and the tool are the real ones. What
an interpreter costs is saved: importing everything, once a process.
"""
import os
import subprocess
from multiprocessing import forkserver
from pathlib import Path

from lives import _main, finish, free_port, run_tool, start
from processes import CONTEXT
from torch.distributed.elastic.multiprocessing.subprocess_handler import \
    SubprocessHandler

# Stands for the interpreter, and prints what it was given.
RECORDER = """#!/bin/sh
printf '%s\\0' "$PYTHONPATH" "$@"
"""


class Forked:
    """As much of a ``subprocess.Popen`` as torchrun's agent uses."""

    def __init__(self, words, env, log):
        _, unbuffered, *command = words
        assert unbuffered == '-u', words
        self.process = CONTEXT.Process(target=_as_leader,
                                       args=(log, command, env, os.getcwd()))
        self.process.start()
        self.pid = self.process.pid

    def poll(self):
        return self.process.exitcode

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.process.is_alive():
            raise subprocess.TimeoutExpired('a tool', timeout)
        return self.process.exitcode


def _as_leader(log, command, env, folder):
    os.setsid()  # the agent ends the whole group of processes
    os.environ.clear()
    _main(log, run_tool, (command[0], command[1:], env, folder))


def _agent(log, command, env, folder):
    # The fork server that this process is from serves it as well; Python
    # would start another one.
    forkserver._forkserver.ensure_running = lambda: None
    SubprocessHandler._popen = (
        lambda self, words, env: Forked(words, env, log))
    run_tool(command[0], command[1:], env, folder)


def launched(folder, script, *arguments) -> tuple:
    """Exit code, and what is printed, of a launcher started in ``folder``."""
    python, log = Path(folder) / 'python', Path(folder) / 'launched.log'
    python.write_text(RECORDER)
    python.chmod(0o755)
    env = dict(OMP_NUM_THREADS='1', PORT=free_port())
    path, *command, _ = subprocess.run([
        'bash', *map(str, (script, *arguments))], env={
            **os.environ,
            **env, 'PYTHON': str(python)}, check=True, capture_output=True,
                                       text=True).stdout.split('\0')
    [code] = finish(
        start(log, _agent, str(log), command, {
            **env, 'PYTHONPATH': path}, str(folder)), timeout=200)
    return code, log.read_text()
