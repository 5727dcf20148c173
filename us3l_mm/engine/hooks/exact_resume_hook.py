# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Any, Iterator, Optional

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, DataLoader

from us3l_mm.engine.mmengine_internals import is_resuming
from us3l_mm.engine.random_states import (random_states, seed_all,
                                          set_random_states)
from us3l_mm.engine.resuming import (Layout, check_checkpoint,
                                     restart_schedules)
from us3l_mm.registry import HOOKS

KEY = 'exact_resume'


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Continue a run exactly where a checkpoint was saved, also in an epoch.

    MMEngine begins the epoch of a checkpoint again and seeds all random
    states as at the start of a run. With this hook a checkpoint also holds
    the position in the data and the random states of every process, and a
    run that is resumed by as many processes is bit-identical (on CPUs).

    With another number of processes or another batch size, each image of the
    epoch is still seen once, except for the rounding at its end. Iterations
    and schedules are those of a run that had this batch size from the start,
    and random states begin anew from the seed and the iteration. An
    iteration-based run keeps its count.

    Validation leaves the random states of training as they were, because a
    resumed run does not validate again. Worker processes of the training
    loader are seeded by the epoch. The hook needs ``AtomicCheckpointHook``,
    which gathers the states of all processes, and ``SeededSampler``. A
    checkpoint that was saved without it is resumed as MMEngine does.
    """

    priority = 'LOW'  # after the sampler has its epoch, before a checkpoint

    def __init__(self):
        self.epoch, self.samples = 0, 0  # images done, over all processes
        self._resumed: Optional[dict] = None
        self._states: Optional[list] = None
        self._before_val: Optional[dict] = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Read the position, and translate it to the epochs of this run.

        Raises:
            ValueError: If the checkpoint is not of this network, lies beyond
                the end, or was saved within an epoch and the sampler cannot
                continue from there.
        """
        if is_resuming(runner):
            self._resumed = checkpoint.get(KEY)
            self._find_position(runner, checkpoint)
            check_checkpoint(runner, checkpoint)

    def _find_position(self, runner: Runner, checkpoint: dict) -> None:
        saved, meta = checkpoint.get(KEY), checkpoint.get('meta')
        if saved and meta and not _is_iteration_based(runner):
            epoch, samples = saved['position']
            if samples and not _is_exact(runner):
                sampler = type(runner.train_dataloader.sampler).__name__
                raise ValueError(
                    'The checkpoint was saved within an epoch, at iteration '
                    f'{meta["iter"]}, and {sampler} (or the batch sampler '
                    'around it) cannot go on from there. Set train_dataloader.'
                    "sampler.type='us3l_mm.SeededSampler', whose order is "
                    'that of DefaultSampler, and leave out batch_sampler; or '
                    'resume from a checkpoint of the end of an epoch.')
            if saved['epoch_length'] != len(runner.train_dataloader):
                self._translate(runner, checkpoint, epoch, samples)

    @staticmethod
    def _translate(runner: Runner, checkpoint: dict, epoch: int,
                   samples: int) -> None:
        """Count iterations as this run would have counted them."""
        meta, length = checkpoint['meta'], len(runner.train_dataloader)
        layout = Layout.of(runner.train_dataloader)
        iteration = epoch * length
        if samples:
            iteration += length - layout.steps_left(samples)
        runner.logger.warning(
            f'Epochs have {length} iterations now and had '
            f'{checkpoint[KEY]["epoch_length"]}: the batch over all processes '
            f'is {layout.step} images. Iteration {meta["iter"]} becomes '
            f'{iteration}, and schedules are stretched accordingly. The '
            'learning rate is that of the config; --auto-scale-lr adapts it '
            'to the batch.')
        meta['iter'] = iteration
        restart_schedules(runner, checkpoint, iteration, length)

    def before_train(self, runner: Runner) -> None:
        """Give the loader its own generator."""
        if runner.train_dataloader.generator is None:
            # Each new iterator draws from the global state, and a resumed run
            # makes other iterators.
            runner.train_dataloader.generator = torch.Generator()

    def before_train_epoch(self, runner: Runner) -> None:
        """Continue where the checkpoint was saved."""
        loader, loop = runner.train_dataloader, runner.train_loop
        resumed, self._resumed = self._resumed or {}, None
        self.epoch, self.samples = resumed.get('position', (runner.epoch, 0))
        loader.generator.manual_seed(self.epoch)
        if _is_iteration_based(runner):
            if _is_exact(runner):
                loop.dataloader_iterator = self._passes(loader)
                loop.fast_forward_on_resume = True  # it is in place already
        elif self.samples:
            loader.sampler.start_at(self.samples)
        if not resumed:
            return
        states = resumed['random_states']
        if states is not None and len(states) == get_world_size():
            set_random_states(states[get_rank()])
        else:
            seed_all(runner.seed or 0, runner.iter, get_rank())

    def _passes(self, loader: DataLoader) -> Iterator:
        """Endless batches, pass after pass over the data.

        MMEngine's iterator counts passes, for shuffling, from the resumption.
        """
        sampler: Any = loader.sampler
        while True:
            sampler.set_epoch(self.epoch)
            sampler.start_at(self.samples)
            loader.generator.manual_seed(self.epoch)
            yield from loader
            self.epoch, self.samples = self.epoch + 1, 0

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Count images."""
        self.samples += Layout.of(runner.train_dataloader).step

    def before_val(self, runner: Runner) -> None:
        """Keep the random states of training."""
        self._before_val = random_states()

    def after_val_epoch(self, runner: Runner,
                        metrics: Optional[dict] = None) -> None:
        """Restore them, before a checkpoint of the best result is saved."""
        if self._before_val is not None:
            set_random_states(self._before_val)
            self._before_val = None

    def before_gather_state(self, runner: Runner) -> None:
        """Gather the random states; called on all processes."""
        self._states = all_gather_object(random_states())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add position and states; called on the main process only."""
        states, self._states = self._states, None
        if states is None and get_world_size() == 1:
            states = [random_states()]
        saved: dict = dict(random_states=states,
                           epoch_length=len(runner.train_dataloader))
        epoch, samples = checkpoint['meta']['epoch'], self.samples
        if not _is_iteration_based(runner):
            # The epoch in which this one is saved may be over.
            saved['position'] = epoch, samples if epoch == self.epoch else 0
        elif _is_exact(runner):
            saved['position'] = self.epoch, samples
        checkpoint[KEY] = saved


def _is_iteration_based(runner: Runner) -> bool:
    return isinstance(runner.train_loop, IterBasedTrainLoop)


def _is_exact(runner: Runner) -> bool:
    """Whether a pass over the data can begin anywhere."""
    loader, loop = runner.train_dataloader, runner.train_loop
    return (hasattr(loader.sampler, 'start_at')
            and type(loader.batch_sampler) is BatchSampler
            # Older versions of MMEngine always skip batches by loading them.
            and (not _is_iteration_based(runner)
                 or hasattr(loop, 'fast_forward_on_resume')))
