# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Training runs by different settings that go on in turn."""
import os
import re
import signal
import time
from collections import Counter
from contextlib import contextmanager
from functools import wraps
from itertools import count
from multiprocessing import active_children
from pathlib import Path

import torch
from mmengine.device import get_device
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.utils import get_ori_model
from synthetic import replace_images
from torch._dynamo.utils import counters

from us3l_mm.apis import launching

AMP = 'us3l_mm.MultiPassAmpOptimWrapper'
# What each word of a setting changes in the config.
SETTINGS = {
    'recipe': {},
    'channels-first': {
        'model.channels_last': False},
    'channels-last': {
        'model.channels_last': True},
    'float32': {
        'optim_wrapper.type': 'us3l_mm.MultiPassOptimWrapper'},
    # float16 on a GPU, bfloat16 on a CPU
    'amp': {
        'optim_wrapper.type': AMP},
    'bfloat16': {
        'optim_wrapper.type': AMP,
        'optim_wrapper.dtype': 'bfloat16'},
    'per-image': {
        'default_hooks.augmentation': None},
    'batched': {
        'default_hooks.augmentation.type': 'us3l_mm.BatchAugmentationHook'},
    'compile': {
        'compile': True},
    # On a GPU, a CUDA graph for each width
    'cuda-graphs': {
        'compile': dict(mode='reduce-overhead')}, }
# Of recipes that draw widths anew in each iteration.
WIDTHS = (1.0, 0.625, 0.25)
DATA, VIEWS, TEACHER, OPTIMIZER, REST = PARTS = ('waiting for data', 'views',
                                                 'teacher', 'optimizer',
                                                 'everything else')
MIB = 2**20


def options_of(setting):
    """The changes that ``setting``, words joined by ``+``, makes."""
    return {
        key: value for word in setting.split('+')
        for key, value in SETTINGS[word].items()}


def config_of(args, setting, folder):
    """The config of a training by ``setting``, as ``tools/train.py`` has it.

    It writes nothing but its log, measures nothing, and trains the same
    widths in every iteration.

    Args:
        args (Namespace): Arguments of the command line.
        setting (str): Words of ``SETTINGS``, joined by ``+``.
        folder (str): Where the log, and synthetic images, go.
    """
    options = {**(args.cfg_options or {}), **options_of(setting)}
    cfg = launching.load_config(args.config, options)
    for key in ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'):
        if not cfg.get(key):
            raise ValueError(f'{args.config} has no {key}, so there is nothing'
                             ' to train by. Configs are in configs/us3l/.')
    if args.batch_size is not None:
        cfg.train_dataloader.batch_size = args.batch_size
    if args.synthetic is not None:
        replace_images(cfg.train_dataloader.dataset, args.synthetic,
                       Path(folder, 'images'))
    fix_widths(cfg, args)
    launching.set_up_training(cfg, args.config, str(Path(folder, setting)),
                              validate=False)
    cfg.default_hooks.update(checkpoint=None, exact_resume=None, logger=None)
    launching.drop_disabled_hooks(cfg)
    cfg.experiment_name, cfg.log_level = setting, 'WARNING'
    launching.check_training(cfg)
    return cfg


def fix_widths(cfg, args):
    """Train ``args.widths`` in every iteration, without a slow start."""
    sampler = cfg.get('default_hooks', {}).get('sampler')
    if not sampler:
        raise ValueError(
            f'{args.config} has no default_hooks.sampler, which says what an '
            'iteration trains. Give a config of a pre-training, such as those '
            'of configs/us3l/.')
    if args.widths or not sampler.get('widths'):
        for name in ('weights', 'width_range'):
            sampler.pop(name, None)
        sampler.widths = list(args.widths or WIDTHS)
    sampler.update(slow_start=0.0, slow_start_epochs=None)


class Parts:
    """Milliseconds of the parts of an iteration.

    On a GPU the device notes the times, and nothing waits for it.

    Args:
        on_gpu (bool): Whether the parts run on a GPU.
    """

    def __init__(self, on_gpu):
        self.on_gpu, self.marks = on_gpu, []
        self.clock = time.perf_counter

    def now(self):
        if not self.on_gpu:
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def timed(self, name, call):
        """``call``, whose times count as ``name``.

        ``name`` is a text, or a function of the arguments that returns one.
        """

        @wraps(call)  # schedulers look for a mark on the step
        def wrapped(*args, **kwargs):
            start = self.now()
            result = call(*args, **kwargs)
            label = name if isinstance(name, str) else name(*args, **kwargs)
            self.marks.append((label, start, self.now()))
            return result

        return wrapped

    def collect(self):
        """The sums by name since the last call, when the device is done."""
        sums = Counter()
        for name, start, end in self.marks:
            sums[name] += (start.elapsed_time(end) if self.on_gpu else 1000 *
                           (end - start))
        self.marks = []
        return sums


class Trial:
    """A training run by one setting that makes iterations when told to.

    The Runner, its data loader and its hooks are those of a training. While
    other trials have their turn, the workers of the loader are stopped: they
    would fill their queue meanwhile, and take processors from the others.

    Args:
        args (Namespace): Arguments of the command line.
        setting (str): Words of ``SETTINGS``, joined by ``+``.
        folder (str): Where the log, and synthetic images, go.

    Attributes:
        rounds (list): For each turn a list of iterations, dicts from the name
            of a part to milliseconds.
        graphs (int): How many graphs were compiled.
        first_ms (float): Milliseconds of the first iteration without its
            data.
    """

    def __init__(self, args, setting, folder):
        self.setting = setting
        self.on_gpu = get_device() == 'cuda'
        cfg = config_of(args, setting, folder)
        self.batch_size = cfg.train_dataloader.batch_size
        if cfg.get('compile'):  # all trials share the limits of graphs
            limits = torch._dynamo.config
            limits.recompile_limit = limits.accumulated_recompile_limit = 2**16
        runner = self.runner = launching.build_runner(cfg)
        launching.check_batches(runner)
        self.algorithm = get_ori_model(runner.model)
        if not hasattr(self.algorithm, 'update_mode'):
            raise ValueError(
                f'{args.config} trains a {type(self.algorithm).__name__}, '
                'which has no passes. Give a config of a pre-training, such '
                'as those of configs/us3l/.')
        # The Runner gets as far as the first iteration.
        runner.train_loop.run = lambda: runner.call_hook('before_train')
        runner.train()
        self.parts = Parts(self.on_gpu)
        self.time_parts(self.algorithm, runner.optim_wrapper)
        self.workers, self.batches, self.count = [], None, count()
        self.rounds, self.graphs = [], 0

    def time_parts(self, algorithm, wrapper):
        """Let the methods of this run note their times."""
        timed = self.parts.timed
        algorithm.views = timed(VIEWS, algorithm.views)
        algorithm.begin = timed(TEACHER, algorithm.begin)
        algorithm.forward = timed(lambda *_, pass_, **__: f'pass {pass_.name}',
                                  algorithm.forward)
        wrapper.backward = timed(
            lambda *_, **__: f'pass {wrapper.current_pass.name}',
            wrapper.backward)
        wrapper.step = timed(OPTIMIZER, wrapper.step)
        wrapper.zero_grad = timed(OPTIMIZER, wrapper.zero_grad)

    def begin_epoch(self):
        before = active_children()
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        self.batches = iter(self.runner.train_dataloader)
        self.workers += [p for p in active_children() if p not in before]

    def next_batch(self):
        if self.batches is None:
            self.begin_epoch()
        try:
            return next(self.batches)
        except StopIteration:
            self.runner.call_hook('after_train_epoch')
            self.begin_epoch()  # with the images of the last one
            return next(self.batches)

    def step(self):
        """An iteration; milliseconds by part, which add up to its time."""
        begin = time.perf_counter()
        batch = self.next_batch()
        ready = time.perf_counter()
        loop = self.runner.train_loop
        place = [next(self.count)] if isinstance(loop,
                                                 EpochBasedTrainLoop) else []
        loop.run_iter(*place, batch)
        if self.on_gpu:
            torch.cuda.synchronize()
        end = time.perf_counter()
        parts = self.parts.collect()
        rest = 1000 * (end - ready) - sum(parts.values())
        return {DATA: 1000 * (ready - begin), **parts, REST: rest}

    @contextmanager
    def at_work(self):
        """The turn of this trial."""
        before = counters['stats']['unique_graphs']
        self.signal_workers(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal_workers(signal.SIGSTOP)
            self.graphs += counters['stats']['unique_graphs'] - before

    def signal_workers(self, number):
        for worker in self.workers:
            if worker.is_alive():
                os.kill(worker.pid, number)

    def warm_up(self):
        """Come to a steady state, whose queue is not one of an idle loader."""
        with self.at_work():
            first = self.step()
            self.first_ms = sum(first.values()) - first[DATA]
            loader = self.runner.train_dataloader
            for _ in range(loader.num_workers * (loader.prefetch_factor or 0)):
                self.next_batch()
            self.step()

    def turn(self, iterations):
        """Make and time some iterations."""
        with self.at_work():
            self.rounds.append([self.step() for _ in range(iterations)])

    def close(self):
        """Let the workers run, without which they could not end."""
        self.signal_workers(signal.SIGCONT)


def peak_memory(args, setting, folder):
    """MiB that a training by ``setting`` takes at most, in a new process.

    On a GPU of tensors, on a CPU of the whole process, its libraries
    included, without the workers of the loader.
    """
    trial = Trial(args, setting, folder)
    trial.step()
    trial.step()
    if trial.on_gpu:
        return torch.cuda.max_memory_allocated() / MIB
    # getrusage would count the process that this one was forked from.
    status = Path('/proc/self/status').read_text()
    return int(re.search(r'VmHWM:\s+(\d+)', status)[1]) / 1024
