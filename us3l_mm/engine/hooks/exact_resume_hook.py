# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Optional

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from us3l_mm.engine.resuming.data_position import Layout, Passes
from us3l_mm.engine.resuming.random_states import (random_states, seed_all,
                                                   set_random_states)
from us3l_mm.engine.resuming.schedules import rewrite_schedules
from us3l_mm.registry import HOOKS

KEY = 'exact_resume'


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Go on exactly where a checkpoint was saved, also within an epoch.

    MMEngine begins the epoch of a checkpoint again and seeds all random
    states as at the start of a run. With this hook a checkpoint also holds
    the position in the data and the random states of every process, and a
    resumed run continues bit by bit (on CPUs), if it has as many processes.

    With another number of processes or another batch size, no image is left
    out and none is seen twice but for the rounding at the end of an epoch;
    the count of iterations and the schedules become what they would be had
    the run had this many from the start, and random states begin anew from
    the seed and the iteration. (An iteration-based run keeps its count.)

    What validation draws does not reach training, as a resumed run does not
    validate what it trained before. Worker processes of the training loader
    are seeded by the epoch. To be used with ``AtomicCheckpointHook``, which
    asks all processes for their states, and ``SeededSampler``.
    """

    priority = 'LOW'  # after the sampler has its epoch, before a checkpoint

    def __init__(self):
        self.samples = 0  # of the epoch, over all processes: what is done
        self._epoch = 0  # which they belong to
        self._resumed: Optional[dict] = None
        self._states: Optional[list] = None
        self._before_val: Optional[dict] = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Read the position; translate the counts to this run's epochs.

        Raises:
            ValueError: where the checkpoint lies within an epoch and the
                sampler cannot go on from there.
        """
        if not runner._resume:
            return  # weights alone
        layout, saved = self._layout(runner), checkpoint.get(KEY, {})
        meta = checkpoint['meta']
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            length = max(layout.steps_left(), 1)
            epoch, samples = saved.get(
                'position',
                (meta['iter'] // length, meta['iter'] % length * layout.step))
        else:
            epoch = meta['epoch']
            samples = self._samples_of(saved, meta, layout)
            self._check_sampler(runner, samples, meta)
            self._translate(runner, checkpoint, saved, layout, samples)
        self._resumed = dict(epoch=epoch, samples=samples, iter=meta['iter'],
                             states=saved.get('random_states'))

    @staticmethod
    def _samples_of(saved: dict, meta: dict, layout: Layout) -> int:
        """Images of the current epoch that are done."""
        if 'position' in saved:
            epoch, samples = saved['position']
            return samples if epoch == meta['epoch'] else 0
        # Of a run without this hook: take its epochs to be as long as ours.
        steps = meta['iter'] - meta['epoch'] * layout.steps_left()
        return steps * layout.step if 0 < steps < layout.steps_left() else 0

    def _check_sampler(self, runner: Runner, samples: int, meta: dict) -> None:
        loader = runner.train_dataloader
        if samples and not self._is_exact(loader):
            raise ValueError(
                f'The checkpoint was saved within an epoch, at iteration '
                f'{meta["iter"]}, and {type(loader.sampler).__name__} (or the '
                'batch sampler around it) cannot go on from there. Set '
                "train_dataloader.sampler.type='us3l_mm.SeededSampler', whose "
                'order is that of DefaultSampler, and leave out batch_sampler;'
                ' or resume from a checkpoint of the end of an epoch.')

    def _translate(self, runner: Runner, checkpoint: dict, saved: dict,
                   layout: Layout, samples: int) -> None:
        """Count iterations as this run would have counted them."""
        meta, length = checkpoint['meta'], len(runner.train_dataloader)
        before = saved.get('epoch_length', length)
        if 'epoch_length' not in saved and meta['epoch'] and not samples:
            before = meta['iter'] / meta['epoch']  # of the end of an epoch
        if before == length:
            return
        iteration = meta['epoch'] * length
        if samples:
            iteration += length - layout.steps_left(samples)
        runner.logger.warning(
            f'Epochs have {length} iterations now and had {before:g}: the '
            f'batch over all processes is {layout.step} images. Iteration '
            f'{meta["iter"]} becomes {iteration}, and schedules are '
            'stretched accordingly. The learning rate is that of the config; '
            '--auto-scale-lr adapts it to the batch.')
        meta['iter'] = iteration
        rewrite_schedules(runner, checkpoint, iteration, length)

    def before_train(self, runner: Runner) -> None:
        """Give the loader a generator of its own."""
        loader, loop = runner.train_dataloader, runner.train_loop
        if loader.generator is None:
            # Each new iterator draws a number out of the global state, and a
            # resumed run makes other iterators.
            loader.generator = torch.Generator()
        if (isinstance(loop, IterBasedTrainLoop) and self._is_exact(loader)
                and hasattr(loop.dataloader_iterator, 'skip_iter')):
            at = self._resumed or dict(epoch=0, samples=0)
            loop.dataloader_iterator = Passes(loader,
                                              self._layout(runner).step,
                                              at['epoch'], at['samples'])

    def before_train_epoch(self, runner: Runner) -> None:
        """Continue where the checkpoint was saved."""
        loader = runner.train_dataloader
        loader.generator.manual_seed(runner.epoch)
        self._epoch, self.samples = runner.epoch, 0
        resumed, self._resumed = self._resumed, None
        if resumed is None:
            return
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            self.samples = resumed['samples']
            if self.samples:
                loader.sampler.start_at(self.samples)
        states = resumed['states']
        if states is not None and len(states) == get_world_size():
            set_random_states(states[get_rank()])
        else:
            seed_all(runner.seed or 0, runner.iter, get_rank())

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Count images."""
        self.samples += self._layout(runner).step

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
        """Exchange the random states; called on all processes."""
        self._states = all_gather_object(random_states())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add position and states; called on the main process alone."""
        states, self._states = self._states, None
        if states is None and get_world_size() == 1:
            states = [random_states()]
        loop, meta = runner.train_loop, checkpoint['meta']
        if isinstance(loop, IterBasedTrainLoop):
            passes = loop.dataloader_iterator
            position = ((passes.epoch, passes.samples) if isinstance(
                passes, Passes) else None)
        else:
            position = (meta['epoch'],
                        self.samples if meta['epoch'] == self._epoch else 0)
        checkpoint[KEY] = dict(random_states=states,
                               epoch_length=len(runner.train_dataloader))
        if position is not None:
            checkpoint[KEY]['position'] = position

    @staticmethod
    def _layout(runner: Runner) -> Layout:
        loader = runner.train_dataloader
        batches = loader.batch_sampler
        # A batch sampler of one's own may have neither; it is not exact.
        return Layout(len(loader.dataset), getattr(batches, 'batch_size', 1),
                      get_world_size(), getattr(batches, 'drop_last', False))

    def _is_exact(self, loader) -> bool:
        """Whether a pass over ``loader`` can begin anywhere."""
        return (hasattr(loader.sampler, 'start_at') and type(
            loader.batch_sampler) is torch.utils.data.BatchSampler)
