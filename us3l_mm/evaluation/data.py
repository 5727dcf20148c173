# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""From the dataloaders of a config to batches that a backbone can take."""
from typing import Iterator, Optional, Tuple

import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

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
    """What ``config`` says under ``key``, such as 'knn_bank_dataloader'.

    Raises:
        ValueError: if there is no such key; shows what to write.
    """
    if key not in config:
        raise ValueError(
            f'{config.filename or "The config"} has no {key}. Say in it which '
            f'labelled images to use, for instance:\n{EXAMPLE}')
    return config[key].to_dict()


def build_loader(cfg: dict, batch_size: Optional[int] = None) -> DataLoader:
    """The dataloader of a config, perhaps with another ``batch_size``."""
    cfg = dict(cfg)
    if batch_size is not None:
        cfg['batch_size'] = batch_size
    return Runner.build_dataloader(cfg, seed=0)


def shuffled(loader: DataLoader) -> DataLoader:
    """The images of ``loader`` in random order, the same in every run.

    For calibration: batches of one class after the other, as many data sets
    are sorted, would have statistics of their own.
    """
    return DataLoader(
        loader.dataset, loader.batch_size, num_workers=loader.num_workers,
        sampler=DefaultSampler(loader.dataset, shuffle=True, seed=0),
        collate_fn=loader.collate_fn, worker_init_fn=loader.worker_init_fn)


def image_size(loader: DataLoader) -> Tuple[int, int]:
    """Height and width of the images in pixels, by the first one."""
    first = loader.dataset[0]['inputs']
    if not isinstance(first, Tensor):
        raise ValueError(
            'The labelled images for kNN and linear probe come as single '
            f'ones, got {len(first)} views of each. Use a plain pipeline, '
            f'without MultiView, such as in:\n{EXAMPLE}')
    return tuple(first.shape[-2:])


def image_batches(loader: DataLoader, preprocessor: nn.Module
                  ) -> Iterator[Tensor]:
    """Preprocessed images, (N, 3, H, W); of several views the first."""
    for batch in loader:
        yield _images(batch, preprocessor)


def labelled_batches(loader: DataLoader, preprocessor: nn.Module
                     ) -> Iterator[Tuple[Tensor, Tensor]]:
    """Preprocessed images (N, 3, H, W) and their labels (N, )."""
    for batch in loader:
        samples = batch.get('data_samples')
        if not samples or not all('gt_label' in s for s in samples):
            raise ValueError(
                f'{type(loader.dataset).__name__} gives images without '
                'gt_label; kNN and linear probe need labelled ones.')
        labels = torch.stack([s.gt_label.reshape(()) for s in samples])
        yield _images(batch, preprocessor), labels


def _images(batch: dict, preprocessor: nn.Module) -> Tensor:
    inputs = batch['inputs']
    if isinstance(inputs, (list, tuple)):
        # Views are batched tensors; single images come from MMEngine's
        # default, pseudo_collate.
        inputs = (torch.stack(list(inputs)) if inputs[0].ndim == 3 else
                  inputs[0])
    return preprocessor(dict(inputs=inputs, data_samples=None),
                        training=False)['inputs']
