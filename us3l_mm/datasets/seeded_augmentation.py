# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Augmentation as a pure function of seed, epoch and sample.

MMEngine seeds a loader's worker once, when it starts. What a sample looks like
then depends on everything that the worker has drawn since, so a resumed run
sees other images, and so does one with another number of workers. Here the
sampler sends a seed along with every index, and the first transform of the
pipeline applies it.
"""
import random
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

    def __iter__(self) -> Iterator[SampleIndex]:
        for index in super().__iter__():
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
