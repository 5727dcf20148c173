# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Augmentation as a pure function of seed, epoch and sample.

MMEngine seeds each worker of a data loader once, when it starts. The
augmentation of a sample then depends on all random numbers that the worker has
drawn before, so a resumed run, or one with another number of workers, sees
other images. Here the sampler sends a seed with each index, and the first
transform of the pipeline sets it.
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

    Its arguments, its order and the share of each process are those of
    ``DefaultSampler``. Use it with :class:`SeedAugmentation`.
    """

    _start = 0

    def start_at(self, num_images: int) -> None:
        """Let the next pass skip its first ``num_images``.

        This resumes a run within an epoch. The number is that of all processes
        together. Batches are dealt from one common order, so the number of
        processes may have changed.
        """
        if num_images < 0:
            raise ValueError('start_at takes the number of images to skip, at '
                             f'least 0, got {num_images}.')
        self._start = num_images

    def _indices(self) -> Iterator[int]:
        """The indices that this process reads in the next pass."""
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
            # A hash of all three, since seed + epoch + index would give one
            # sample the seed of another in a later epoch.
            words = np.random.SeedSequence([self.seed, self.epoch, index])
            yield SampleIndex(index, int(words.generate_state(1)[0]))


@TRANSFORMS.register_module()
class SeedAugmentation(BaseTransform):
    """Seed python's, NumPy's and PyTorch's generators for one sample.

    The first transform of a training pipeline whose sampler is a
    :class:`SeededSampler`. No value of the sample is changed. The generators
    of accelerators, which no data loader uses, keep their state.

    Raises:
        TypeError: If the index has no seed.
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
        # torch.manual_seed would seed those of accelerators as well. Where one
        # is not in use, it notes the call with a formatted stack trace, which
        # takes longer than augmenting a small image.
        torch.default_generator.manual_seed(index.seed)
        return results
