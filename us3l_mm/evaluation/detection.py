# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Batch-norm statistics of a detector that runs at many widths."""
from functools import cached_property
from typing import Iterator, List, Optional, Sequence

import torch
from mmengine.dist import get_rank, get_world_size
from torch import nn
from torch.utils.data import DataLoader, Sampler

from .calibration import calibrate


def calibrate_detector(detector: nn.Module, loader: DataLoader,
                       widths: Optional[Sequence[float]] = None,
                       num_images: Optional[int] = None,
                       progress: Optional[str] = None) -> int:
    """Measure and store the statistics of ``widths``; see :func:`calibrate`.

    Images come in batches as in training, augmented and padded like there, in
    a fixed random order, dealt out to the processes; so their number does not
    matter. They go as far as there are norms: through the
    backbone, the neck too, or, on annotated images, to the heads, which see
    the regions of training.

    Args:
        detector (nn.Module): An ``AllWidthsDetector``.
        loader (DataLoader): Of the training. The order of its images is not
            touched; random states are, by its transforms.
        widths (sequence[float], optional): Defaults to those that the
            detector was built for.
        num_images (int, optional): How many images to use, over all processes
            together. Defaults to all.
        progress (str, optional): What to write before a progress bar.
            Defaults to None: no bar.

    Returns:
        int: The number of images used, over all processes.
    """
    widths = detector.widths if widths is None else widths
    return calibrate(
        detector, _batches(loader, num_images, detector.data_preprocessor),
        widths, num_images, progress, is_share=True,
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
    """The images of each batch of this process.

    Made in the way of ``loader``, such as by aspect ratio: how much padding
    there is enters the statistics.

    Raises:
        ValueError: if its way cannot be repeated in another order.
    """
    maker = loader.batch_sampler
    if not isinstance(getattr(maker, 'batch_size', None), int):
        raise ValueError(
            f'{type(maker).__name__} makes batches of no one size, which '
            'statistics cannot be measured with. Use AspectRatioBatchSampler '
            'as train_dataloader.batch_sampler, or none.')
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
        images (list[Tensor]): Each (3, H, W).
        samples (list): As many, with annotations.
        preprocess (callable): Makes of them what the network takes.
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
        """Once, for all widths."""
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
