# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""From the dataloaders of a config to batches that a backbone can take."""
from typing import Iterator, Optional, Tuple

import torch
from mmengine.config import Config
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


def build_loader(config: Config, key: str, batch_size: Optional[int] = None,
                 shuffle: Optional[bool] = None) -> DataLoader:
    """The dataloader that ``config`` describes under ``key``.

    Args:
        config (Config): Of the pre-training.
        key (str): Such as 'knn_bank_dataloader'.
        batch_size (int, optional): Instead of the configured one.
        shuffle (bool, optional): Replaces the configured sampler by a
            ``DefaultSampler``, seeded with 0.

    Raises:
        ValueError: if there is no such key; shows what to write.
    """
    if key not in config:
        raise ValueError(
            f'{config.filename or "The config"} has no {key}. Say in it which '
            f'labelled images to use, for instance:\n{EXAMPLE}')
    loader = Config(dict(loader=config[key])).loader.to_dict()
    if batch_size is not None:
        loader['batch_size'] = batch_size
    if shuffle is not None:
        loader['sampler'] = dict(type='DefaultSampler', shuffle=shuffle,
                                 seed=0)
    # Iterated once or twice: workers that stay would only hold memory.
    loader['persistent_workers'] = False
    return Runner.build_dataloader(loader, seed=0)


def image_batches(loader: DataLoader, preprocessor: nn.Module
                  ) -> Iterator[Tensor]:
    """Preprocessed images, (N, 3, H, W); of several views the first."""
    for batch in loader:
        yield _images(batch, preprocessor)


def labelled_batches(loader: DataLoader, preprocessor: nn.Module
                     ) -> Iterator[Tuple[Tensor, Tensor]]:
    """Preprocessed images (N, 3, H, W) and their labels (N, )."""
    for batch in loader:
        samples = batch.get('data_samples') or [None]
        if not all('gt_label' in sample for sample in samples if sample
                   is not None) or samples[0] is None:
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
