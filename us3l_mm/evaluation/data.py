# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Batches for a backbone, from the dataloaders of a config."""
import logging
from copy import copy
from dataclasses import dataclass
from typing import Iterator, List, Optional, Tuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.dist import get_rank, get_world_size
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from us3l_mm.datasets.image_folder import UNREADABLE
from .overlap import identify

BANK, QUERY, TRAIN = ('knn_bank_dataloader', 'knn_query_dataloader',
                      'train_dataloader')

EXAMPLE = """
test_pipeline = [
    dict(type='mmpretrain.ResizeEdge', scale=256),
    dict(type='mmpretrain.CenterCrop', crop_size=224),
    dict(type='mmpretrain.PackInputs')]
knn_bank_dataloader = dict(  # labelled training images, not augmented
    batch_size=256, num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='mmpretrain.CIFAR10', data_root='data/cifar10',
                 split='train', pipeline=test_pipeline))
knn_query_dataloader = dict(  # the same with the images to classify
    ..., dataset=dict(..., split='test', ...))"""


def loader_cfg(config: Config, key: str) -> dict:
    """The dataloader of ``config`` under ``key``, as a dict.

    Raises:
        ValueError: If there is no such key, with an example to copy.
    """
    if key not in config:
        raise ValueError(
            f'{config.filename or "The config"} has no {key}, which gives '
            f'the labelled images to use. Add one, for instance:\n{EXAMPLE}')
    return config[key].to_dict()


def build_loader(cfg: dict, batch_size: Optional[int] = None) -> DataLoader:
    """The dataloader of ``cfg``, if given with another ``batch_size``."""
    changes = {} if batch_size is None else dict(batch_size=batch_size)
    return Runner.build_dataloader(dict(cfg, **changes), seed=0)


def dealt(loader: DataLoader, num_images: Optional[int] = None,
          order: Optional[Sampler] = None) -> DataLoader:
    """``loader`` with whole batches for each process.

    The batches are those that a single process would make. Of n processes,
    process r takes the batches r, r + n, r + 2n, ... Layers that normalise by
    the batch then give the same result with any number of processes. A single
    image at the end is added to the batch before it.

    Args:
        loader (DataLoader): The loader. Its batches are made in its own way,
            for instance by aspect ratio, because the amount of padding
            influences the statistics.
        num_images (int, optional): Number of images to use, from the first,
            over all processes. Defaults to None for all.
        order (Sampler, optional): The order of the images. Defaults to that
            of ``loader``, or to a random one if that has no end.

    Raises:
        ValueError: If ``num_images`` is below 2, or the batches have no fixed
            size.
    """
    check_num_images(num_images)
    maker = loader.batch_sampler
    if not isinstance(getattr(maker, 'batch_size', None), int):
        raise ValueError(
            f'Statistics are measured in batches of a fixed size, which '
            f'{type(maker).__name__} does not make. Use '
            'AspectRatioBatchSampler as train_dataloader.batch_sampler, or '
            'none.')
    order = copy(order or loader.sampler)
    if not isinstance(order, DefaultSampler):
        order = DefaultSampler(loader.dataset, shuffle=True, seed=0)
    order.rank, order.world_size = 0, 1
    order.total_size = len(loader.dataset)
    left = num_images or order.total_size
    batches: List[list] = []
    for batch in type(maker)(order, maker.batch_size, loader.drop_last):
        batches.append(list(batch[:left]))
        left -= len(batches[-1])
        if not left:
            break
    if batches and len(batches[-1]) == 1:
        alone = batches.pop()
        if batches:
            batches[-1] += alone
    return DataLoader(
        loader.dataset, batch_sampler=batches[get_rank()::get_world_size()],
        num_workers=loader.num_workers, collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn)


def check_num_images(num_images: Optional[int]) -> None:
    """Raise ValueError unless this is a number of images, or None."""
    if num_images is not None and (isinstance(num_images, bool)
                                   or not isinstance(num_images, int)
                                   or num_images < 2):
        raise ValueError('Batch statistics need at least two images, got '
                         f'num_images={num_images!r}.')


def shuffled(loader: DataLoader,
             num_images: Optional[int] = None) -> DataLoader:
    """The images of ``loader`` in random order, the same in every run.

    This is for calibration: many data sets are sorted by class, and batches
    of one class have other statistics. ``num_images`` limits their number.
    """
    return dealt(loader, num_images,
                 DefaultSampler(loader.dataset, shuffle=True, seed=0))


def image_size(loader: DataLoader) -> Tuple[int, int]:
    """Height and width in pixels of the first image."""
    first = loader.dataset[0]['inputs']
    if not isinstance(first, Tensor):
        raise ValueError(
            'kNN and linear probe take one view of each image, '
            f'got {len(first)} views of each. Use a plain pipeline, '
            f'without MultiView, such as in:\n{EXAMPLE}')
    return tuple(first.shape[-2:])


def image_batches(loader: DataLoader,
                  preprocessor: nn.Module) -> Iterator[Tensor]:
    """Preprocessed images (N, 3, H, W), of several views the first one."""
    for batch in loader:
        yield _images(batch, preprocessor)


@dataclass(frozen=True)
class Images:
    """:func:`image_batches` that can be read again and again."""

    loader: DataLoader
    preprocessor: nn.Module

    def __iter__(self) -> Iterator[Tensor]:
        return image_batches(self.loader, self.preprocessor)


def labelled_batches(loader: DataLoader, preprocessor: nn.Module
                     ) -> Iterator[Tuple[Tensor, Tensor, np.ndarray]]:
    """Preprocessed images (N, 3, H, W), labels (N, ), identities (N, 2)."""
    for batch in loader:
        samples = batch.get('data_samples')
        if not samples or not all('gt_label' in s for s in samples):
            raise ValueError(
                'kNN and linear probe need images with a gt_label, which '
                f'{type(loader.dataset).__name__} does not give.')
        labels = torch.stack([s.gt_label.reshape(()) for s in samples])
        replaced = [s.get(UNREADABLE) for s in samples if UNREADABLE in s]
        if replaced:
            print_log(
                f'{len(replaced)} images could not be read; others of the same'
                f' data set count twice instead. The first one: {replaced[0]}',
                'current', logging.WARNING)
        images = _images(batch, preprocessor)
        paths = [sample.get('img_path') for sample in samples]
        yield images, labels, identify(images, paths)


def _images(batch: dict, preprocessor: nn.Module) -> Tensor:
    inputs = batch['inputs']
    if isinstance(inputs, (list, tuple)):
        # Views are batched tensors; single images come from MMEngine's
        # default, pseudo_collate.
        inputs = (torch.stack(list(inputs))
                  if inputs[0].ndim == 3 else inputs[0])
    return preprocessor(dict(inputs=inputs, data_samples=None),
                        training=False)['inputs']
