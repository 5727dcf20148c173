# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Every training image is a function of (seed, epoch, sample)."""
import numpy as np
import pytest
import torch
from mmengine.runner import Runner

VIEW = [
    dict(type='RandomResizedCrop', scale=8, crop_ratio_range=(.2, 1.)),
    dict(type='ColorJitter', brightness=.4, contrast=.4)]


def loader(num_workers, seed=0):
    return Runner.build_dataloader(
        dict(
            batch_size=4, num_workers=num_workers,
            persistent_workers=num_workers > 0, sampler=dict(
                type='us3l_mm.SeededSampler', shuffle=True),
            collate_fn=dict(type='default_collate'), dataset=dict(
                type='us3l_mm.RenderedDigits', split='train', num_images=12,
                pipeline=[
                    dict(type='us3l_mm.SeedAugmentation'),
                    dict(type='mmpretrain.MultiView', num_views=[2],
                         transforms=[VIEW]),
                    dict(type='mmpretrain.PackInputs')])), seed=seed)


def images(batches, epoch):
    batches.sampler.set_epoch(epoch)
    return torch.stack([torch.stack(b['inputs']) for b in batches])


@pytest.fixture(autouse=True)
def mmpretrain_scope():
    from mmengine.registry import DefaultScope
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.mark.parametrize('num_workers', [1, 2])
def test_images_do_not_depend_on_workers_or_on_what_was_drawn(num_workers):
    plain, workers = loader(0), loader(num_workers)
    images(workers, epoch=0)  # persistent workers have drawn since
    np.random.rand(7), torch.rand(3)
    assert torch.equal(images(plain, epoch=1), images(workers, epoch=1))


def test_epochs_seeds_and_views_differ():
    batches = loader(0)
    first, second = images(batches, 0), images(batches, 1)
    assert not torch.equal(first, second)
    assert not torch.equal(first[:, 0], first[:, 1])
    assert not torch.equal(first, images(loader(0, seed=1), 0))


def test_an_index_without_a_seed_is_refused():
    with pytest.raises(TypeError, match='SeededSampler'):
        loader(0).dataset[0]
