# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from time import perf_counter
from typing import Iterable, Optional, Sequence

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from us3l_mm.engine.mmengine_internals import built_loop
from us3l_mm.engine.resuming.random_states import seeded
from us3l_mm.evaluation.detector_calibration import (batches_of,
                                                     calibrate_detector)
from us3l_mm.models.layers import (FULL, Subnet, SubnetLike, check_subnets,
                                   has_statistics)
from us3l_mm.registry import HOOKS
from .compile_hook import uncompiled


@HOOKS.register_module()
class CalibrationHook(Hook):
    """Measure the batch-norm statistics of a detector of many widths.

    Training tracks none, since an average over several widths would fit none
    of them. They are measured on training images: at the end of an epoch,
    before its checkpoint is saved, and before a validation or a test if some
    are missing. Training is not affected; its next step discards them.

    Args:
        num_images (int): Number of training images to measure with, over all
            processes, at most all of them. Defaults to 1000.
        widths (sequence, optional): The widths, or other sub-networks.
            Defaults to those that the detector was built for. Those of the
            validation or test are added.
        interval (int): Number of epochs, or iterations, between two
            measurements; checkpoints should be saved at multiples of it. The
            last epoch always has a measurement. Defaults to 1.
        by_epoch (bool): Whether the interval counts epochs. Defaults to True.
    """

    priority = 'LOW'  # before a checkpoint is saved

    def __init__(self, num_images: int = 1000,
                 widths: Optional[Sequence[SubnetLike]] = None,
                 interval: int = 1, by_epoch: bool = True):
        if not isinstance(interval, int) or interval < 1:
            raise ValueError('interval is a number of epochs or iterations '
                             f'of at least 1, got {interval!r}.')
        if num_images < 2:
            raise ValueError('Batch statistics need at least two images, got '
                             f'num_images={num_images}.')
        self.num_images, self.interval = num_images, interval
        self.subnets = [Subnet.of(width) for width in widths or ()]
        self.by_epoch, self._loader = by_epoch, None

    def before_run(self, runner: Runner) -> None:
        """Raise if something could not be measured at the end of an epoch."""
        detector = get_ori_model(runner.model)
        if not hasattr(detector, 'run_norms'):
            raise ValueError(
                'CalibrationHook measures the norms of an AllWidthsDetector, '
                f'got a {type(detector).__name__}; remove it.')
        check_subnets(detector, self.subnets)

    def before_train(self, runner: Runner) -> None:
        """Raise if the batches could not be repeated."""
        batches_of(runner.train_dataloader, 2)

    def after_train_epoch(self, runner: Runner) -> None:
        """Measure every ``interval`` epochs and after the last one."""
        if self.by_epoch and (self.every_n_epochs(runner, self.interval)
                              or self.is_last_train_epoch(runner)):
            self._measure_all(runner)

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Measure every ``interval`` iterations and after the last one."""
        if not self.by_epoch and (self.every_n_train_iters(
                runner, self.interval) or self.is_last_train_iter(runner)):
            self._measure_all(runner)

    def before_val(self, runner: Runner) -> None:
        """Measure what is missing."""
        self._measure_missing(runner, built_loop(runner, 'val'))

    def before_test(self, runner: Runner) -> None:
        """Measure what is missing, such as a width that was not trained."""
        self._measure_missing(runner, built_loop(runner, 'test'))

    def _measure_all(self, runner: Runner) -> None:
        subnets = self.subnets or get_ori_model(runner.model).subnets
        validated = getattr(built_loop(runner, 'val'), 'evaluators', ())
        self._measure(runner, dict.fromkeys([*subnets, *validated]))

    def _measure_missing(self, runner: Runner, loop) -> None:
        detector = get_ori_model(runner.model)
        # A stock loop runs the full network.
        missing = [
            subnet for subnet in getattr(loop, 'evaluators', [FULL])
            if not has_statistics(detector, subnet)
        ]
        if missing:
            self._measure(runner, missing)

    def _measure(self, runner: Runner, subnets: Iterable[Subnet]) -> None:
        start = perf_counter()
        with seeded(0), uncompiled(runner):
            loader = self._train_loader(runner)
            seen = calibrate_detector(
                get_ori_model(runner.model), loader, list(subnets),
                min(self.num_images, len(loader.dataset)))
        runner.logger.info(
            f'Batch-norm statistics of {", ".join(map(str, subnets))} '
            f'measured on {seen} images ({perf_counter() - start:.1f} s)')

    def _train_loader(self, runner: Runner):
        if built_loop(runner, 'train'):
            return runner.train_dataloader
        if self._loader is None:  # in a test
            cfg = runner.cfg.get('train_dataloader')
            if not cfg:
                raise ValueError(
                    'The checkpoint lacks batch-norm statistics, and the '
                    'config has no train_dataloader to measure them on.')
            self._loader = Runner.build_dataloader(cfg, seed=0)
        return self._loader
