# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from time import perf_counter
from typing import List, Optional, Sequence

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from us3l_mm.engine.mmengine_internals import built_loop
from us3l_mm.engine.resuming.random_states import seeded
from us3l_mm.evaluation.detection import batches_of, calibrate_detector
from us3l_mm.models.layers import has_statistics
from us3l_mm.models.layers import FULL, Subnet
from us3l_mm.registry import HOOKS


@HOOKS.register_module()
class CalibrationHook(Hook):
    """Measure the batch-norm statistics of a detector of many widths.

    Training tracks none, since an average over several widths would fit none
    of them. They are measured on training images at the end of an epoch,
    before its checkpoint is saved, so that this has them, and before a
    validation or a test if some are missing. Training goes on as if nothing
    had happened; its next step drops them.

    Args:
        num_images (int): Training images to measure with, over all processes;
            never more than there are. Defaults to 1000.
        widths (sequence[float], optional): Defaults to those that the detector
            was built for. Those of the validation or test are added.
        interval (int): Epochs, or iterations, between two measurements; a
            multiple of it should save checkpoints. The last epoch always has
            one. Defaults to 1.
        by_epoch (bool): Whether the interval counts epochs. Defaults to True.
    """

    priority = 'LOW'  # before a checkpoint is saved

    def __init__(self, num_images: int = 1000,
                 widths: Optional[Sequence[float]] = None, interval: int = 1,
                 by_epoch: bool = True):
        if not isinstance(interval, int) or interval < 1:
            raise ValueError('interval is a number of epochs or iterations '
                             f'of at least 1, got {interval!r}.')
        if num_images < 2:
            raise ValueError('Batch statistics need at least two images, got '
                             f'num_images={num_images}.')
        self.num_images, self.interval = num_images, interval
        self.widths = (None if widths is None else
                       [Subnet.of(width).width for width in widths])
        self.by_epoch, self._loader = by_epoch, None

    def before_run(self, runner: Runner) -> None:
        """Refuse what could not be measured at the end of an epoch."""
        detector = get_ori_model(runner.model)
        if not hasattr(detector, 'run_norms'):
            raise ValueError(
                'CalibrationHook measures the norms of an AllWidthsDetector, '
                f'got a {type(detector).__name__}; remove it.')
        for width in self.widths or ():
            Subnet.of(width).check(detector.backbone.width_range)

    def before_train(self, runner: Runner) -> None:
        """Refuse batches that could not be repeated."""
        batches_of(runner.train_dataloader, 2)

    def after_train_epoch(self, runner: Runner) -> None:
        """Measure every ``interval`` epochs and after the last one."""
        if self.by_epoch and (self.every_n_epochs(runner, self.interval)
                              or self.is_last_train_epoch(runner)):
            self._measure(runner,
                          self._widths(runner, built_loop(runner, 'val')))

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Measure every ``interval`` iterations and after the last one."""
        if not self.by_epoch and (self.every_n_train_iters(
                runner, self.interval) or self.is_last_train_iter(runner)):
            self._measure(runner,
                          self._widths(runner, built_loop(runner, 'val')))

    def before_val(self, runner: Runner) -> None:
        """Measure what is missing."""
        self._measure_missing(runner, built_loop(runner, 'val'))

    def before_test(self, runner: Runner) -> None:
        """Measure what is missing, such as a width that was not trained."""
        self._measure_missing(runner, built_loop(runner, 'test'))

    def _widths(self, runner: Runner, loop) -> List[float]:
        detector = get_ori_model(runner.model)
        return list(
            dict.fromkeys([
                *(self.widths or detector.widths),
                *getattr(loop, 'evaluators', ())
            ]))

    def _measure_missing(self, runner: Runner, loop) -> None:
        detector = get_ori_model(runner.model)
        # A stock loop runs the width that is set.
        widths = list(getattr(loop, 'evaluators', [FULL.width]))
        missing = [
            width for width in widths if not has_statistics(detector, width)
        ]
        if missing:
            self._measure(runner, missing)

    def _measure(self, runner: Runner, widths: List[float]) -> None:
        start = perf_counter()
        with seeded(0):
            loader = self._train_loader(runner)
            seen = calibrate_detector(
                get_ori_model(runner.model), loader, widths,
                min(self.num_images, len(loader.dataset)))
        runner.logger.info(
            'Batch-norm statistics of the widths '
            f'{", ".join(f"{width:g}" for width in widths)} measured on '
            f'{seen} images ({perf_counter() - start:.1f} s)')

    def _train_loader(self, runner: Runner):
        if built_loop(runner, 'train'):
            return runner.train_dataloader
        if self._loader is None:  # in a test
            cfg = runner.cfg.get('train_dataloader')
            if not cfg:
                raise ValueError(
                    'Batch-norm statistics of some widths are missing in the '
                    'checkpoint, and the config has no train_dataloader to '
                    'measure them on.')
            self._loader = Runner.build_dataloader(cfg, seed=0)
        return self._loader
