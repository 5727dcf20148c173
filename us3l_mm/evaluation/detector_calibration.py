# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Batch-norm statistics of a detector that runs many sub-networks."""
from functools import cached_property
from typing import Iterator, List, Optional, Sequence

import torch
from mmengine.dist import get_rank, get_world_size
from torch import nn
from torch.utils.data import DataLoader, Sampler

from us3l_mm.models.layers import SubnetLike
from .calibration import calibrate


def calibrate_detector(detector: nn.Module, loader: DataLoader,
                       subnets: Optional[Sequence[SubnetLike]] = None,
                       num_images: Optional[int] = None,
                       progress: Optional[str] = None) -> int:
    """Measure and store the statistics of ``subnets``; see :func:`calibrate`.

    Images come in batches as in training, augmented and padded in the same
    way, in a fixed random order that is shared out over the processes, so the
    number of processes does not matter. They pass through the modules that
    have norms: the backbone, also the neck, or, if the images are annotated,
    also the heads, which see the regions of training.

    Args:
        detector (nn.Module): An ``AllWidthsDetector``.
        loader (DataLoader): The loader of the training. The order of its
            images is not changed; its transforms change the random states.
        subnets (sequence, optional): The sub-networks, or their widths.
            Defaults to those that the detector was built for.
        num_images (int, optional): Number of images to use, over all
            processes together. Defaults to all.
        progress (str, optional): The text before a progress bar. Defaults to
            None for no bar.

    Returns:
        int: The number of images used, over all processes.
    """
    return calibrate(
        detector, _batches(loader, num_images, detector.data_preprocessor),
        detector.subnets if subnets is None else subnets, num_images, progress,
        is_share=True,
        forward=lambda batch: detector.run_norms(**batch.preprocessed))


class _Shuffled(Sampler):
    """A fixed random order of all images."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(0)
        return iter(torch.randperm(len(self), generator=draw).tolist())

    def __len__(self) -> int:
        return len(self.dataset)


def batches_of(loader: DataLoader,
               num_images: Optional[int] = None) -> List[List[int]]:
    """The indices of the images in each batch of this process.

    Batches are made as in ``loader``, for instance by aspect ratio, because
    the amount of padding influences the statistics.

    Raises:
        ValueError: If the batch sampler has no fixed batch size.
    """
    maker = loader.batch_sampler
    if not isinstance(getattr(maker, 'batch_size', None), int):
        raise ValueError(
            f'Statistics are measured in batches of a fixed size, which '
            f'{type(maker).__name__} does not make. Use '
            'AspectRatioBatchSampler as train_dataloader.batch_sampler, or '
            'none.')
    batches, left = [], num_images or len(loader.dataset)
    for batch in type(maker)(_Shuffled(loader.dataset), maker.batch_size,
                             False):
        batches.append(list(batch[:left]))
        left -= len(batches[-1])
        if not left:
            break
    if len(batches) > 1 and len(batches[-1]) == 1:
        alone = batches.pop()
        batches[-1] += alone
    return batches[get_rank()::get_world_size()]


class _Batch:
    """Images of several sizes with their annotations, not yet padded.

    Args:
        images (list[Tensor]): The images, each (3, H, W).
        samples (list): Their samples, with annotations.
        preprocess (callable): Makes the inputs of the network from them.
    """

    def __init__(self, images: list, samples: list, preprocess):
        self.images, self.samples = list(images), list(samples)
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> '_Batch':
        return _Batch(self.images[part], self.samples[part], self.preprocess)

    def __add__(self, other: '_Batch') -> '_Batch':
        return _Batch(self.images + other.images, self.samples + other.samples,
                      self.preprocess)

    @cached_property
    def preprocessed(self) -> dict:
        """The inputs of the network, computed once for all sub-networks."""
        return self.preprocess(
            dict(inputs=self.images, data_samples=self.samples), training=True)


def _batches(loader: DataLoader, num_images: Optional[int],
             preprocess) -> Iterator[_Batch]:
    for batch in DataLoader(loader.dataset,
                            batch_sampler=batches_of(loader, num_images),
                            num_workers=loader.num_workers,
                            collate_fn=loader.collate_fn,
                            worker_init_fn=loader.worker_init_fn):
        yield _Batch(batch['inputs'], batch['data_samples'], preprocess)
