# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Training in processes that can be killed, started within a second.

Python's fork server imports the libraries once; each process is a fork of it,
which has computed nothing yet.
"""
import faulthandler
import multiprocessing
import os
import signal
import sys
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from small_run import small_cfg

from us3l_mm.engine.faults import explain

CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload([
    'us3l_mm.engine', 'us3l_mm.datasets', 'us3l_mm.models',
    'mmpretrain.datasets', 'mmpretrain.engine', 'mmpretrain.visualization'])


class Note(Hook):
    """Says which images and widths an iteration has had, and at which lr."""

    priority = 'LOWEST'

    def __init__(self, die_at=None):
        self.notes, self.die_at = {}, die_at

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        self.notes[runner.iter] = dict(
            images=[int(s.sample_idx) for s in data_batch['data_samples']],
            widths=[s.width for s in runner.model.module.plan.subnets]
            if hasattr(runner.model, 'module') else None,
            lr=runner.optim_wrapper.get_lr()['lr'][0])
        if runner.iter == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)


def cfg_of(work_dir, **changes):
    """Twelve iterations: four epochs of three."""
    cfg = small_cfg(work_dir, **{
        'model.backbone.drop_path_rate': 0.5, **changes})
    cfg.train_dataloader.dataset.pipeline[-1].meta_keys = ('sample_idx', )
    return cfg


def train(work_dir, changes=None, began=None, die_at=None, before=None):
    """Train, or resume; what was seen goes to ``notes.pth``."""
    if before is not None:
        before()
    cfg = cfg_of(work_dir, **(changes or {}))
    note = Note(die_at)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(note)
    if began is not None:
        began.send(True)
    runner.train()
    rank = runner.rank
    torch.save(note.notes, Path(work_dir) / f'notes-{rank}.pth')
    torch.save((runner.model.state_dict(),
                runner.optim_wrapper.state_dict()['state']),
               Path(work_dir) / f'end-{rank}.pth')


def train_rank(rank, world, store, work_dir, changes=None, *args):
    """One of several processes."""
    os.environ['LOCAL_RANK'] = str(rank)
    torch.distributed.init_process_group(
        'gloo', f'file://{store}', rank=rank, world_size=world,
        timeout=timedelta(seconds=30))
    changes = {**(changes or {}), 'launcher': 'pytorch', 'model_wrapper_cfg':
               dict(type='us3l_mm.US3LDistributedDataParallel')}
    train(work_dir, changes, *args)
    torch.distributed.destroy_process_group()


def _main(log, function, args):
    torch.set_num_threads(1)
    with open(log, 'a', buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        faulthandler.disable()
        try:
            function(*args)
        except Exception as error:  # noqa: BLE001 - its text is the result
            traceback.print_exc(file=file)
            print(explain(error, os.path.dirname(log)), file=file, flush=True)
            os._exit(1)


def start(log, function, *args):
    """``function(*args)`` in a process; what it prints is in ``log``."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    process = CONTEXT.Process(target=_main, args=(str(log), function, args))
    process.start()
    return process


def finish(*processes, timeout=100) -> list:
    """Exit codes, once all have ended; a hang is an error."""
    end = time.monotonic() + timeout
    waiting = {p.sentinel for p in processes}
    while waiting and time.monotonic() < end:
        waiting -= {*wait([*waiting], end - time.monotonic())}
    hanging = [p for p in processes if p.is_alive()]
    for process in hanging:
        process.kill()
    for process in processes:
        process.join()
    assert not hanging, f'{len(hanging)} processes hang'
    return [p.exitcode for p in processes]


def kill_at(seconds, log, work_dir, changes):
    """Train until killed, so long after it began; returns the exit code."""
    began, other = CONTEXT.Pipe(duplex=False)
    process = start(log, train, str(work_dir), changes, other)
    other.close()
    try:
        began.recv()
    except EOFError:  # it failed: the exit code tells
        return finish(process)[0]
    process.join(seconds)
    process.kill()
    return finish(process)[0]


def ranks(folder, work_dir, arguments, world=2) -> list:
    """Processes of one run, with the further arguments of each rank."""
    store = Path(folder) / f'store-{time.monotonic_ns()}'
    return [start(Path(folder) / f'{Path(work_dir).name}-{rank}.log',
                  train_rank, rank, world, str(store), str(work_dir),
                  *arguments[rank]) for rank in range(world)]


def end_of(work_dir, rank=0) -> tuple:
    """Weights and momenta at the end of training."""
    weights, optimizer = torch.load(Path(work_dir) / f'end-{rank}.pth')
    return weights, {str(key): value['momentum_buffer']
                     for key, value in optimizer.items()}


def assert_same_end(one, other) -> None:
    """Bit for bit, weights, teacher and momenta."""
    for left, right in zip(one, other):
        assert left.keys() == right.keys() and left
        for name, value in left.items():
            assert torch.equal(value, right[name]), name
