# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What stopped a run, in words."""
import re
from typing import Optional

from us3l_mm.fileio import DISK_FULL, free_space

WORKER_DIED = re.compile(r'DataLoader worker \(pid\(?s?\)?.*(exited|killed)',
                         re.S)
WORKER_HANGS = re.compile(r'DataLoader timed out after (\d+)')
# What gloo, NCCL and PyTorch's store say of a process that is gone.
LOST = re.compile(
    r'Connection (closed by peer|reset by peer|refused)|Broken pipe|'
    r'Socket closed|ProcessGroup\w* .*(abort|terminat)|remote process exited|'
    r'NCCL communicator was aborted|ncclRemoteError|'
    r'Connection was likely closed', re.I)
WAITED = re.compile(r'timed? ?out|timeout', re.I)


def explain(error: BaseException, work_dir: str) -> Optional[str]:
    """The cause of ``error`` and what to do, or None for an ordinary error.

    Args:
        error (BaseException): What ended training.
        work_dir (str): Of the run.
    """
    text = f'{type(error).__name__}: {error}'
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return (f'The disk is full: {free_space(work_dir + "/")}. Checkpoints '
                'that were written before are whole: make room and go on with '
                '--resume.')
    if WORKER_DIED.search(text):
        return ('A worker process of a data loader died, which takes the run '
                'with it. Killed by signal 9 mostly means that memory ran out '
                '(fewer train_dataloader.num_workers, smaller batches), a bus '
                'error that /dev/shm is too small. Otherwise look for its own '
                'error above, or run with train_dataloader.num_workers=0. Go '
                'on with --resume.')
    if WORKER_HANGS.search(text):
        seconds = WORKER_HANGS.search(text).group(1)
        return (f'No worker of a data loader gave a batch within {seconds} '
                'seconds: it hangs, or the disk or network of the images '
                'does. If they are merely slow, raise '
                'train_dataloader.timeout. Go on with --resume.')
    distributed = type(error).__module__.startswith('torch') or isinstance(
        error, RuntimeError)
    if distributed and LOST.search(text):
        return ('Another process of this run is gone; look at the log of the '
                'one that ended first. Go on with --resume (elastic restarts '
                'do: docs/distributed.md).')
    if distributed and WAITED.search(text):
        return ('Another process of this run did not answer in time: it '
                'hangs, or was still busy. How long to wait: '
                'env_cfg.dist_cfg.timeout, in seconds. Go on with --resume.')
    return None
