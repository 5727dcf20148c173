# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Optional

from mmengine.hooks import Hook
from mmengine.runner import Runner


class PeriodicHook(Hook):
    """Base class of a hook that acts every few epochs or iterations.

    It acts at the end of training in any case, and before a checkpoint of the
    same epoch or iteration is saved.

    Args:
        interval (int): Number of epochs, or iterations, between two actions.
        by_epoch (bool): Whether the interval counts epochs.
    """

    priority = 'LOW'

    def __init__(self, interval: int, by_epoch: bool):
        if not isinstance(interval, int) or interval < 1:
            raise ValueError('interval is a number of epochs or iterations '
                             f'of at least 1, got {interval!r}.')
        self.interval, self.by_epoch = interval, by_epoch

    def act(self, runner: Runner, iterations: int) -> None:
        """The action, after ``iterations`` iterations of training."""
        raise NotImplementedError(f'{type(self).__name__} has no action.')

    def after_train_epoch(self, runner: Runner) -> None:
        """Act every ``interval`` epochs and after the last one."""
        if self.by_epoch and (self.every_n_epochs(runner, self.interval)
                              or self.is_last_train_epoch(runner)):
            self.act(runner, runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Act every ``interval`` iterations and after the last one."""
        if not self.by_epoch and (self.every_n_train_iters(
                runner, self.interval) or self.is_last_train_iter(runner)):
            self.act(runner, runner.iter + 1)
