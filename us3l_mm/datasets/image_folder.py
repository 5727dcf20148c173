# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Folders of images, some of which may be damaged."""
import hashlib
import logging
import os
import os.path as osp
from collections import Counter, defaultdict
from typing import Dict, Iterable, List, Optional, Set, Tuple

import numpy as np
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log
from mmpretrain.datasets import CustomDataset

from us3l_mm.registry import DATASETS
from .image_scan import find_defects
from .load_image import UnreadableImageError, printable
from .seeded_augmentation import SampleIndex

SPLITS = ('train', 'val')
# Metadata of a sample whose own image could not be read: the reason.
UNREADABLE = 'unreadable'
MAX_TRIES = 10
# Names, and reasons, of skipped files in a line of the log.
MAX_SHOWN = 5


@DATASETS.register_module()
class ImageFolder(CustomDataset):
    """MMPretrain's ``CustomDataset``, without the files that are not images.

    All files are checked before training, see
    :func:`~us3l_mm.datasets.image_scan.find_defects`. The log says how many
    are used, and how many are skipped for which reason; ``skipped`` lists
    them, and :class:`~us3l_mm.engine.UnreadableImagesHook` writes that list to
    a file. Every format that OpenCV reads is used, whatever the name of the
    file. Files and folders whose names begin with a dot are ignored.

    If a file turns out to be damaged when it is read, another image of the
    data set takes its place, with its label. Which one depends on the sample
    and its seed alone. :class:`~us3l_mm.engine.UnreadableImagesHook` counts
    such images in training, and an evaluation logs them. With
    ``test_mode=True`` such an image is an error.

    Args:
        split (str, optional): 'train' or 'val' for a part of the images of
            each class. To which of them an image belongs depends on its path
            relative to the folder and on ``split_seed``. Defaults to None for
            all images.
        val_share (float): The share of 'val' in (0, 1); a class of at least
            two images has at least one in each part. Defaults to 0.2.
        split_seed (int): The seed of the split. Defaults to 0.
        **kwargs: Those of ``CustomDataset``. The ``pipeline`` reads images by
            :class:`LoadImage` and ends with ``PackInputs``.

    Raises:
        FileNotFoundError, NotADirectoryError: If there is no such folder.
        ValueError: If it has no image that can be read, or an argument is
            wrong.
    """

    def __init__(self, *args, split: Optional[str] = None,
                 val_share: float = 0.2, split_seed: int = 0, **kwargs):
        if split not in (None, *SPLITS):
            raise ValueError(f'split is one of {SPLITS}, or None for all '
                             f'images, got {split!r}.')
        if not isinstance(val_share, (int, float)) or not 0 < val_share < 1:
            raise ValueError('val_share is the share of images in the split '
                             f"'val', between 0 and 1, got {val_share!r}.")
        self.split, self.val_share = split, val_share
        self.split_seed = split_seed
        self.skipped: Dict[str, str] = {}
        # Whether a file is an image depends on its content.
        super().__init__(*args, **dict(kwargs, extensions=('', )))

    def load_data_list(self) -> List[dict]:
        """The images of the split, in the order of their names."""
        root = self.img_prefix.rstrip('/')
        if not osp.isdir(root):
            error = NotADirectoryError if osp.exists(
                root) else FileNotFoundError
            raise error(f'There is no folder of images {root!r}. Set data_root'
                        ' to the folder that holds them.')
        try:
            infos = super().load_data_list()
        except RuntimeError:  # it has found no files
            infos = []
        names = [
            info['img_path'].removeprefix(root).lstrip('/') for info in infos]
        self.skipped = _find_defects(root, names)
        if self.with_label and not self.ann_file:
            self.skipped.update({
                name: 'outside of the folders of the classes'
                for name in sorted(os.listdir(root))
                if name[0] != '.' and osp.isfile(osp.join(root, name))})
        usable = [(name, info) for name, info in zip(names, infos)
                  if name not in self.skipped]
        if not usable:
            raise ValueError(
                f'{root} has no image that can be read{self._skipped_text()}. '
                'Set data_root to a folder of images' +
                (', with one folder per class, or with_label=False if there '
                 'are no classes.' if self.with_label else '.'))
        if self.split is not None:
            part = self._part_of(usable)
            usable = [sample for sample in usable if sample[0] in part]
        if is_main_process():
            split = f', split {self.split!r}' if self.split else ''
            print_log(
                f'{root}{split}: {len(usable):,} images used'
                f'{self._skipped_text()}.', 'current',
                logging.WARNING if self.skipped else logging.INFO)
        return [info for _, info in usable]

    def _skipped_text(self) -> str:
        """How many files are skipped, why, and the names of a few."""
        if not self.skipped:
            return ''
        reasons = Counter(self.skipped.values()).most_common()
        text = [f'{count:,} {why}' for why, count in reasons[:MAX_SHOWN]]
        rest = sum(count for _, count in reasons[MAX_SHOWN:])
        if rest:
            text.append(f'{rest:,} for other reasons')
        names = [printable(name) for name in [*self.skipped][:MAX_SHOWN]]
        more = ', ...' if len(self.skipped) > MAX_SHOWN else ''
        return (f'; skipped: {len(self.skipped):,} ({", ".join(text)}: '
                f'{", ".join(names)}{more})')

    def _part_of(self, samples: Iterable[Tuple[str, dict]]) -> Set[str]:
        """The names of those ``samples`` that belong to the split."""
        classes: Dict[Optional[int], List[str]] = defaultdict(list)
        for name, info in samples:
            classes[info.get('gt_label')].append(name)
        part: Set[str] = set()
        for names in classes.values():
            # In the order of a hash, so that an added image moves few others.
            names.sort(key=lambda name: hashlib.sha256(
                os.fsencode(f'{self.split_seed}/{name}')).digest())
            count = min(max(round(self.val_share * len(names)), 1),
                        len(names) - 1)
            part.update(names[:count] if self.split ==
                        'val' else names[count:])
        return part

    def prepare_data(self, idx: int) -> dict:
        """The sample ``idx``, or another one if it cannot be read."""
        try:
            return super().prepare_data(idx)
        except UnreadableImageError as error:
            if self.test_mode:
                raise
            reason = error
        seed = getattr(idx, 'seed', 0)
        rng = np.random.default_rng([seed, int(idx)])
        for _ in range(MAX_TRIES):
            other = SampleIndex(rng.integers(len(self)),
                                int(rng.integers(2**32)))
            try:
                data = super().prepare_data(other)
            except UnreadableImageError:
                continue
            data['data_samples'].set_metainfo({UNREADABLE: str(reason)})
            return data
        raise UnreadableImageError(
            f'{MAX_TRIES} images in a row could not be read. The first one: '
            f'{reason}')


def _find_defects(root: str, names: List[str]) -> Dict[str, str]:
    """What the main process finds, for all processes."""
    found: list = [None]
    if is_main_process():
        found = [find_defects(root, names)]
    broadcast_object_list(found)
    return found[0]
