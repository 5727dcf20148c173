# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Augmentation as a pure function of seed, epoch and sample.

MMEngine seeds a loader's worker once, when it starts. What a sample looks like
then depends on everything that the worker has drawn since, so a resumed run
sees other images, and so does one with another number of workers. Here the
sampler sends a seed along with every index, and the first transform of the
pipeline applies it.
"""
import random
from copy import copy
from typing import Iterator

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import DefaultSampler

from us3l_mm.registry import DATA_SAMPLERS, TRANSFORMS


class SampleIndex(int):
    """The index of a sample, with the seed of its augmentation."""

    seed: int

    def __new__(cls, index: int, seed: int = 0) -> 'SampleIndex':
        self = super().__new__(cls, index)
        self.seed = seed
        return self


@DATA_SAMPLERS.register_module()
class SeededSampler(DefaultSampler):
    """MMEngine's ``DefaultSampler`` whose indices carry a seed.

    Order, shuffling and the share of each process are those of
    ``DefaultSampler``; arguments too. To be used with
    :class:`SeedAugmentation`.
    """

    _start = 0

    def start_at(self, num_images: int) -> None:
        """Let the next pass leave out its first ``num_images``.

        So a run goes on in the middle of an epoch. Counted are the images of
        all processes together, and since batches are dealt out of one common
        order, the number of processes may be another one by now.
        """
        if num_images < 0:
            raise ValueError('start_at counts images that are left out, got '
                             f'{num_images}.')
        self._start = num_images

    def _indices(self) -> Iterator[int]:
        """What this process reads in the next pass."""
        start, self._start = self._start, 0
        if start == 0:
            return super().__iter__()
        whole = copy(self)  # the order as a single process would read it
        whole.rank, whole.world_size = 0, 1
        whole.total_size = len(self.dataset)
        order = list(DefaultSampler.__iter__(whole))
        rest = order[start:]
        if self.round_up:
            missing = -len(rest) % self.world_size
            rest += (order * (missing // len(order) + 1))[:missing]
        return iter(rest[self.rank::self.world_size])

    def __iter__(self) -> Iterator[SampleIndex]:
        for index in self._indices():
            # A hash of all three: seed + epoch + index would repeat itself
            # along the epochs.
            words = np.random.SeedSequence([self.seed, self.epoch, index])
            yield SampleIndex(index, int(words.generate_state(1)[0]))


@TRANSFORMS.register_module()
class SeedAugmentation(BaseTransform):
    """Seed python's, NumPy's and PyTorch's generators for one sample.

    The first transform of a training pipeline whose sampler is a
    :class:`SeededSampler`. No value of the sample is changed.

    Raises:
        TypeError: if the index has no seed; each image would look the same
            in every epoch.
    """

    def transform(self, results: dict) -> dict:
        index = results['sample_idx']
        if not isinstance(index, SampleIndex):
            raise TypeError(
                'SeedAugmentation got an index without a seed. Use '
                "sampler=dict(type='us3l_mm.SeededSampler', shuffle=True) in "
                'the dataloader, on the data set itself (a wrapper such as '
                'RepeatDataset makes indices of its own).')
        random.seed(index.seed)
        np.random.seed(index.seed)
        torch.manual_seed(index.seed)
        return results
