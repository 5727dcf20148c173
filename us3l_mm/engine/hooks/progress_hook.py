# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from datetime import timedelta
from time import perf_counter
from typing import Optional, Tuple

from mmengine.dist import broadcast_object_list
from mmengine.hooks import LoggerHook
from mmengine.runner import Runner

from us3l_mm.engine.resuming import Layout
from us3l_mm.registry import HOOKS


@HOOKS.register_module()
class ProgressHook(LoggerHook):
    """MMEngine's ``LoggerHook``, which logs at least every half minute.

    Where iterations are slow, ``interval`` is lowered. One more line says how
    much there is to train, and how long that takes by the first iterations.

    Args:
        seconds (float): Most seconds between two lines of training. Defaults
            to 30.
        **kwargs: Arguments of ``LoggerHook``.
    """

    interval: int

    def __init__(self, seconds: float = 30, **kwargs):
        super().__init__(**kwargs)
        if not seconds > 0:
            raise ValueError('seconds is the time between two lines of the '
                             f'log and has to be above 0, got {seconds!r}.')
        self.seconds, self.max_interval = seconds, self.interval

    def before_train(self, runner: Runner) -> None:
        """Forget the speed of an earlier training."""
        self._last: Optional[Tuple[int, float]] = None
        self._has_estimated = False
        self._first = runner.iter

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Log if it is time; measure in iterations 1, 2, 4, 8, ..."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        done = runner.iter - self._first
        if done & (done - 1) and not self.is_last_train_iter(runner):
            return
        now = perf_counter()
        if self._last is not None:
            iteration, time = self._last
            speed = [(now - time) / max(runner.iter - iteration, 1)]
            # Processes log together: a line has the memory of all of them.
            broadcast_object_list(speed)
            self.interval = max(
                1, min(self.max_interval, int(self.seconds / speed[0])))
            self._estimate(runner, done, speed[0])
        # The first iteration, which is slower, is not measured.
        self._last = runner.iter, now

    def _estimate(self, runner: Runner, done: int, speed: float) -> None:
        if self._has_estimated or (done * speed < 2 and done < 8):
            return
        self._has_estimated = True
        loader = runner.train_dataloader
        left = runner.max_iters - runner.iter - 1
        runner.logger.info(
            f'{len(loader.dataset)} images in batches of '
            f'{Layout.of(loader).step}: {runner.max_iters} iterations, '
            f'{len(loader)} an epoch. The {left} that are left take about '
            f'{timedelta(seconds=round(left * speed))} ({speed:.2f} s an '
            'iteration).')
