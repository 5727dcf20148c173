# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import os.path as osp
from itertools import chain
from typing import List, Optional

from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from us3l_mm.datasets import UnreadableImageError
from us3l_mm.datasets.image_folder import UNREADABLE
from us3l_mm.fileio import write_atomically
from us3l_mm.registry import HOOKS

LIST = 'skipped_files.txt'
# Iterations between two counts of all processes.
INTERVAL = 50


@HOOKS.register_module()
class UnreadableImagesHook(Hook):
    """Report images that cannot be read, and stop if there are too many.

    For a :class:`~us3l_mm.datasets.ImageFolder`. The files that it skips are
    listed in ``skipped_files.txt`` in the work dir. Images that it replaces in
    training are counted, and the count is logged at the end of the epoch.

    Args:
        max_share (float): The share of the data set, in [0, 1], that may be
            replaced in an epoch. A single image never stops the training,
            unless this is 0. Defaults to 0.01.
    """

    def __init__(self, max_share: float = 0.01):
        if not isinstance(max_share, (int, float)) or not 0 <= max_share <= 1:
            raise ValueError('max_share is the share of images that may be '
                             f'unreadable, from 0 to 1, got {max_share!r}.')
        self.max_share = max_share
        self.reasons: List[str] = []

    def before_train(self, runner: Runner) -> None:
        """List the files that the data set skips."""
        skipped = getattr(runner.train_dataloader.dataset, 'skipped', None)
        if not skipped or not is_main_process():
            return
        path = osp.join(runner.work_dir, LIST)
        lines = [f'{name}: {why}\n' for name, why in skipped.items()]

        def write(temporary: str) -> None:
            # A name may have any characters, and bytes that are not UTF-8.
            with open(temporary, 'w', encoding='utf-8',
                      errors='surrogateescape') as file:
                file.writelines(lines)

        write_atomically(path, write)
        runner.logger.info(f'The skipped files are listed in {path}.')

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Count replaced images; log the count after a pass over the data."""
        self.reasons += [
            sample.get(UNREADABLE)
            for sample in (data_batch or {}).get('data_samples') or ()
            if UNREADABLE in sample]
        is_end = self.every_n_train_iters(runner, len(
            runner.train_dataloader)) or self.is_last_train_iter(runner)
        if not is_end and not self.every_n_train_iters(runner, INTERVAL):
            return
        reasons = self._check(runner)
        if is_end and reasons:
            runner.logger.warning(
                'Images that could not be read in the epoch until iteration '
                f'{runner.iter + 1} and were replaced by others: '
                f'{len(reasons):,}. The first one: {reasons[0]}')
        if is_end:
            self.reasons = []

    def _check(self, runner: Runner) -> List[str]:
        """The reasons of all processes; all raise together."""
        reasons = [*chain(*all_gather_object(self.reasons))]
        size = len(runner.train_dataloader.dataset)
        allowed = max(self.max_share * size, self.max_share > 0)
        if len(reasons) > allowed:
            raise UnreadableImageError(
                f'{len(reasons):,} of the {size:,} images could not be read in'
                f' this epoch, which is more than max_share={self.max_share:g}'
                f' of UnreadableImagesHook. The first one: {reasons[0]} To '
                'replace more images by others, raise '
                'default_hooks.images.max_share.')
        return reasons
