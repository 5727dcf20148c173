# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Start a few gloo processes on this machine, cheaply."""
import multiprocessing
import os

import torch
import brief  # noqa: F401
from torch.multiprocessing import start_processes

# Python's fork server imports these once. Each process of the suite is a fork
# of it, which has computed nothing yet, and begins within a second.
CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload([
    'us3l_mm.engine', 'us3l_mm.datasets', 'us3l_mm.models', 'us3l_mm.apis',
    'mmpretrain.datasets', 'mmpretrain.engine', 'mmpretrain.visualization'])


def run_processes(worker, world_size, folder, *args):
    """``worker(rank, folder, *args)`` in each of ``world_size`` processes.

    Raises what any of them raises. ``folder`` is where they leave results.
    """
    # Not a port, which somebody else may take.
    meeting = os.path.join(str(folder), f'meeting-of-{world_size}')
    start_processes(_start, (worker, world_size, meeting, str(folder), *args),
                    nprocs=world_size, start_method='forkserver')


def _start(rank, worker, world_size, meeting, folder, *args):
    # The server's environment is that of the first test that needed it.
    os.environ['LOCAL_RANK'] = str(rank)
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', f'file://{meeting}',
                                         rank=rank, world_size=world_size)
    worker(rank, folder, *args)
    torch.distributed.destroy_process_group()
