# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from time import perf_counter
from typing import Iterable, Optional, Sequence

from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from us3l_mm.engine.mmengine_internals import built_loop
from us3l_mm.engine.random_states import seeded
from us3l_mm.evaluation import calibrate_detector
from us3l_mm.evaluation.data import check_num_images, shuffled
from us3l_mm.models.layers import (FULL, Subnet, SubnetLike, check_subnets,
                                   has_statistics)
from us3l_mm.registry import HOOKS
from .compile_hook import uncompiled
from .periodic_hook import PeriodicHook


@HOOKS.register_module()
class CalibrationHook(PeriodicHook):
    """Measure the batch-norm statistics of a detector of many widths.

    Training tracks no statistics, since an average over several widths fits
    none of them. They are measured on training images at the end of an epoch,
    before its checkpoint is saved, and before a validation or a test that
    lacks some. The next training step discards them.

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

    def __init__(self, num_images: int = 1000,
                 widths: Optional[Sequence[SubnetLike]] = None,
                 interval: int = 1, by_epoch: bool = True):
        super().__init__(interval, by_epoch)
        check_num_images(num_images)
        self.num_images, self._loader = num_images, None
        self.subnets = [Subnet.of(width) for width in widths or ()]

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
        shuffled(runner.train_dataloader, 2)

    def before_test(self, runner: Runner) -> None:
        """Measure missing statistics, as for a width that was not trained."""
        self.before_val(runner, 'test')

    def before_val(self, runner: Runner, stage: str = 'val') -> None:
        """Measure missing statistics."""
        detector = get_ori_model(runner.model)
        # A stock loop runs the full network.
        subnets = getattr(built_loop(runner, stage), 'evaluators', [FULL])
        missing = [s for s in subnets if not has_statistics(detector, s)]
        if missing:
            self._measure(runner, missing)

    def act(self, runner: Runner, iterations: int) -> None:
        """Measure all sub-networks."""
        subnets = self.subnets or get_ori_model(runner.model).subnets
        validated = getattr(built_loop(runner, 'val'), 'evaluators', ())
        self._measure(runner, dict.fromkeys([*subnets, *validated]))

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
