# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Connecting the processes of a launcher where there is no GPU.

MMEngine begins by choosing a GPU and fails without one. On GPUs it connects
the processes.
"""
import os
import subprocess
from datetime import timedelta
from typing import Dict, Optional

import torch.distributed as torch_dist
from mmengine.config import Config
from mmengine.device import get_device

from .config import map_texts

# Seconds that a process waits for another one
TIMEOUT = 1800
PORT = '29500'
# What each launcher calls rank, number of processes and rank on its machine.
NAMES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE',
            'OMPI_COMM_WORLD_LOCAL_RANK'), }
STARTED_BY = {
    'pytorch': 'tools/dist_train.sh, tools/dist_test.sh or torchrun',
    'slurm': 'tools/slurm_train.sh, tools/slurm_test.sh or srun',
    'mpi': "Open MPI's mpirun", }


def environment(launcher: str) -> Dict[str, str]:
    """PyTorch's variables, from those that ``launcher`` has set.

    Raises:
        ValueError: If a variable of the launcher is missing.
    """
    found = {}
    for name, theirs in zip(NAMES['pytorch'], NAMES[launcher]):
        if theirs not in os.environ:
            raise ValueError(
                f'--launcher {launcher} expects the environment variable '
                f'{theirs}, which is not set: start the processes with '
                f'{STARTED_BY[launcher]}.')
        found[name] = os.environ[theirs]
    address = os.environ.get('MASTER_ADDR') or _first_host(launcher)
    if address is None:
        raise ValueError(
            f'--launcher {launcher} expects the environment variable '
            'MASTER_ADDR: the name of the machine of rank 0.')
    return dict(found, MASTER_ADDR=address, MASTER_PORT=os.environ.get(
        'MASTER_PORT', PORT))


def get_rank() -> int:
    """The rank of this process, also before it is connected to others."""
    return next((int(os.environ[rank]) for rank, *_ in NAMES.values()
                 if os.environ.get(rank, '').isdecimal()), 0)


def _first_host(launcher: str) -> Optional[str]:
    """The machine of rank 0, if the launcher names it."""
    if launcher == 'slurm' and 'SLURM_NODELIST' in os.environ:
        done = subprocess.run([
            'scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']],
                              capture_output=True, text=True, check=True)
        return done.stdout.split()[0]
    one_machine = os.environ.get('OMPI_COMM_WORLD_LOCAL_SIZE') == (
        os.environ.get('OMPI_COMM_WORLD_SIZE'))
    return '127.0.0.1' if launcher == 'mpi' and one_machine else None


def join_on_cpus(launcher: str, timeout: Optional[float] = None) -> None:
    """Connect the processes of ``launcher`` through gloo.

    Args:
        launcher (str): 'pytorch', 'slurm' or 'mpi'.
        timeout (float, optional): Seconds that a process waits for another
            one. Defaults to half an hour.

    Raises:
        ValueError: If the launcher has not started this process.
    """
    os.environ.update(environment(launcher))
    torch_dist.init_process_group(
        'gloo', timeout=timedelta(seconds=timeout or TIMEOUT))
    if torch_dist.get_rank() == 0:
        print(
            f'No GPU: {torch_dist.get_world_size()} processes work on CPUs '
            'and talk through gloo.', flush=True)


def has_accelerator() -> bool:
    """Whether MMEngine trains on a device other than a CPU."""
    return get_device() not in ('cpu', 'mps')


def join_processes(cfg: Config) -> None:
    """Connect the processes of a distributed run on CPUs.

    On accelerators the Runner does this itself.

    Raises:
        ValueError: If the launcher has not started this process.
    """
    if cfg.launcher == 'none' or has_accelerator():
        return
    for_processes_on_cpus(cfg)
    join_on_cpus(cfg.launcher, cfg.env_cfg.dist_cfg.get('timeout'))


def leave_processes() -> None:
    """Disconnect from the other processes, if there are any."""
    if torch_dist.is_available() and torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def for_processes_on_cpus(cfg: Config) -> None:
    """Let the processes of a run communicate through gloo.

    PyTorch synchronises batch norms on GPUs only; each process takes the
    statistics of its own images instead.
    """
    cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
    cfg.model_wrapper_cfg = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel', broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False))
    if cfg.model_wrapper_cfg.type == 'MMDistributedDataParallel':
        # MMEngine would name the GPU of this process.
        cfg.model_wrapper_cfg.setdefault('device_ids', None)
    cfg.model = map_texts(cfg.model, lambda text: 'BN'
                          if text == 'SyncBN' else text)
