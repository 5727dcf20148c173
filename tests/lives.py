# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Training, and programs, in processes that can be killed."""
import faulthandler
import itertools
import os
import resource
import runpy
import signal
import socket
import sys
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS
from mmengine.runner import Runner
from processes import CONTEXT
from small_run import small_cfg


class Note(Hook):
    """Says which images and widths an iteration has had, and at which lr."""

    priority = 'LOWEST'

    def __init__(self, die_at=None, done=None):
        self.notes, self.die_at, self.done = {}, die_at, done

    def before_train(self, runner):
        if self.done is not None:
            self.done.send(runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        self.notes[runner.iter] = dict(
            images=[int(s.sample_idx)
                    for s in data_batch['data_samples']], widths=[
                        p.subnet.width for p in data_batch['plan'].passes],
            lr=runner.optim_wrapper.get_lr()['lr'][0])
        if self.done is not None:
            self.done.send(runner.iter + 1)
        if runner.iter == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class DieOnce(Hook):
    """A process that is lost, unless it has been started again."""

    def __init__(self, rank, iteration):
        self.rank, self.iteration = rank, iteration

    def after_train_iter(self, runner, *args, **kwargs):
        if (runner.rank, runner.iter) == (self.rank, self.iteration) and (
                os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'):
            os.kill(os.getpid(), signal.SIGKILL)


@TRANSFORMS.register_module()
class Fails:
    """Ends or stops the process of a data loader that works on a sample."""

    def __init__(self, sample, how):
        self.sample, self.how = sample, how

    def __call__(self, results):
        if results['sample_idx'] == self.sample:
            if self.how == 'dies':
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(100)
        return results


def die_at_write(number):
    """Die before the so-many-th step of writing files."""
    count = itertools.count(1)

    def counted(step):

        def wrapper(*args):
            if next(count) == number:
                for path in Path.cwd().glob('**/.*.pth'):  # half is written
                    os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*args)

        return wrapper

    for name in ('fsync', 'replace', 'remove'):
        setattr(os, name, counted(getattr(os, name)))


def small_files(epoch):
    """Allow only tiny files from an epoch on, as a full disk would."""
    begin = Runner.save_checkpoint

    def limited(runner, *args, **kwargs):
        if runner.epoch >= epoch:
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit))
        begin(runner, *args, **kwargs)

    Runner.save_checkpoint = limited


def stop_at(iteration):
    """Stop, without ending, after an iteration."""
    after = Note.after_train_iter

    def stopping(self, runner, *args, **kwargs):
        after(self, runner, *args, **kwargs)
        if runner.iter == iteration:
            os.kill(os.getpid(), signal.SIGSTOP)

    Note.after_train_iter = stopping


def other_weights():
    """A process whose weights are not those of the others."""
    begin = Runner.load_or_resume

    def changed(runner):
        begin(runner)
        next(runner.model.parameters()).data[0] += 1e-6

    Runner.load_or_resume = changed


def clock_ahead():
    """A machine whose clock is a day ahead."""
    clock = time.time
    time.time = lambda: clock() + 86400


def cfg_of(work_dir, **changes):
    """Twelve iterations: four epochs of three."""
    cfg = small_cfg(work_dir, **{
        'model.backbone.drop_path_rate': 0.5,
        **changes})
    cfg.train_dataloader.dataset.pipeline[-1].meta_keys = ('sample_idx', )
    return cfg


def train(work_dir, changes=None, done=None, die_at=None, before=()):
    """Train, or resume; what was seen goes to ``notes.pth``."""
    if before:
        before[0](*before[1:])
    cfg = cfg_of(work_dir, **(changes or {}))
    note = Note(die_at, done)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(note)
    runner.train()
    rank = runner.rank
    torch.save(note.notes, Path(work_dir) / f'notes-{rank}.pth')
    torch.save((runner.model.state_dict(),
                runner.optim_wrapper.state_dict()['state']),
               Path(work_dir) / f'end-{rank}.pth')


def train_rank(rank, world, store, work_dir, changes=None, *args):
    """One of several processes."""
    os.environ['LOCAL_RANK'] = str(rank)
    torch.distributed.init_process_group('gloo', f'file://{store}', rank=rank,
                                         world_size=world,
                                         timeout=timedelta(seconds=15))
    changes = {
        **(changes or {}), 'launcher': 'pytorch',
        'model_wrapper_cfg':
        dict(type='us3l_mm.MultiPassDistributedDataParallel')}
    train(work_dir, changes, *args)
    torch.distributed.destroy_process_group()


def run_tool(path, arguments, environment, folder=None):
    """A tool as if started in ``folder``, by a launcher that sets
    ``environment``."""
    os.environ.update(environment)
    os.chdir(folder or os.getcwd())
    sys.path.insert(0, str(Path(path).parent))
    sys.argv = [str(path), *map(str, arguments)]
    runpy.run_path(str(path), run_name='__main__')


def _main(log, function, args):
    os.chdir(os.path.dirname(log))
    torch.set_num_threads(1)
    with open(log, 'a', buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        faulthandler.disable()
        try:
            function(*args)
        except SystemExit as error:
            print(error.code, file=file, flush=True)
            os._exit(1 if error.code else 0)
        except Exception:  # noqa: BLE001 - its text is the result
            traceback.print_exc(file=file)
            os._exit(1)


def start(log, function, *args):
    """``function(*args)`` in a process; what it prints is in ``log``."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    process = CONTEXT.Process(target=_main, args=(str(log), function, args))
    process.start()
    return process


def run_alone(log, path, *arguments, folder) -> None:
    """A tool in a process of its own, as if started in ``folder``.

    It has to succeed; what it prints is in ``log``.
    """
    assert finish(start(log, run_tool, path, arguments, {}, folder),
                  timeout=300) == [0], Path(log).read_text()[-5000:]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return str(free.getsockname()[1])


def launch(folder, path, *arguments, world=2) -> str:
    """A tool in ``world`` processes, with the variables of torchrun.

    Returns what the first one prints. All have to succeed.
    """
    port = free_port()
    logs = [Path(folder) / f'rank-{rank}.log' for rank in range(world)]
    codes = finish(
        *(start(
            log, run_tool, path, [*arguments, '--launcher', 'pytorch'],
            dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port,
                 WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
                 RANK=str(rank), LOCAL_RANK=str(rank)))
          for rank, log in enumerate(logs)), timeout=300)
    said = [log.read_text() for log in logs]
    assert codes == [0] * world, '\n'.join(text[-3000:] for text in said)
    return said[0]


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


def kill_after(iterations, share, log, work_dir, changes):
    """Train until killed, at a share of the time that another step takes.

    A step is an iteration with its checkpoint; where ``iterations`` is None,
    it is what precedes the first one. Returns the exit code.
    """
    reader, writer = CONTEXT.Pipe(duplex=False)
    begin = time.monotonic()
    process = start(log, train, str(work_dir), changes, writer)
    writer.close()
    took = 1.0 if iterations is None else 0.2
    try:
        for _ in range(0 if iterations is None else iterations + 1):
            reader.recv()
            took, begin = time.monotonic() - begin, time.monotonic()
    except EOFError:  # it failed or came to its end: the exit code tells
        return finish(process)[0]
    if iterations == 0:
        took = 0.2  # the start says nothing about an iteration
    time.sleep(share * took)
    process.kill()
    return finish(process)[0]


def ranks(folder, work_dir, arguments, world=2) -> list:
    """Processes of one run, with the further arguments of each rank."""
    store = Path(folder) / f'store-{time.monotonic_ns()}'
    return [
        start(
            Path(folder) / f'{Path(work_dir).name}-{rank}.log', train_rank,
            rank, world, str(store), str(work_dir), *arguments[rank])
        for rank in range(world)]


def end_of(work_dir, rank=0) -> tuple:
    """Weights and momenta at the end of training."""
    weights, optimizer = torch.load(Path(work_dir) / f'end-{rank}.pth')
    return weights, {
        str(key): value['momentum_buffer'] for key, value in optimizer.items()}


def assert_same_end(one, other) -> None:
    """Bit for bit, weights, teacher and momenta."""
    for left, right in zip(one, other):
        assert left.keys() == right.keys() and left
        for name, value in left.items():
            assert torch.equal(value, right[name]), name
