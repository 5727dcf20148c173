# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Training with views of whole batches: exact, and by one option."""
import copy

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from small_run import small_cfg
from torch.utils.data import BatchSampler

from us3l_mm.datasets import SeedAugmentation
from us3l_mm.engine.hooks.batch_augmentation_hook import plain
from us3l_mm.models import BatchAugmentation

BATCHED = {
    'default_hooks.augmentation': dict(type='us3l_mm.BatchAugmentationHook')}


class Views(Hook):
    """Keeps the views that the algorithm trains on, by sample."""

    def __init__(self):
        self.views = []

    def before_train(self, runner):
        model = runner.model

        def keep(module, arguments, result):
            if len(result['inputs']) == 2:
                indices = [int(s.sample_idx) for s in result['data_samples']]
                self.views.append((indices, torch.stack(result['inputs'], 1)))

        model.data_preprocessor.register_forward_hook(keep)


def run(work_dir, resume=None, **changes):
    cfg = small_cfg(
        work_dir, **{
            'train_cfg.max_epochs': 2,
            'default_hooks.checkpoint.by_epoch': False,
            **BATCHED,
            **changes})
    if resume is not None:
        cfg.update(resume=True, load_from=str(resume))
    runner, views = Runner.from_cfg(cfg), Views()
    runner.register_hook(views, priority='VERY_LOW')
    runner.train()
    return runner, views.views


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp('whole'))


def test_the_pipeline_becomes_the_preprocessor(whole):
    runner, views = whole
    assert isinstance(runner.model.data_preprocessor, BatchAugmentation)
    names = [
        type(each).__name__
        for each in runner.train_dataloader.dataset.pipeline.transforms]
    assert names == ['PackInputs']
    [multi] = [
        each for each in runner.cfg.train_dataloader.dataset.pipeline
        if each.type == 'MultiView']
    assert multi.num_views == [2]  # what a checkpoint holds is the recipe
    assert len(views) == 6
    for _, pair in views:
        assert pair.shape == (8, 2, 3, 16, 16)
        assert not torch.equal(pair[:, 0], pair[:, 1])


@pytest.mark.parametrize('workers', [0, 2])
def test_a_resumed_run_sees_the_same_views(whole, workers, tmp_path):
    """Within an epoch, and with another number of workers."""
    runner, views = whole
    again, rest = run(tmp_path, f'{runner.work_dir}/iter_2.pth', **{
        'train_dataloader.num_workers': workers})
    assert len(rest) == 4
    for (indices, one), (same, other) in zip(views[2:], rest):
        assert indices == same and torch.equal(one, other)
    state = again.model.state_dict()
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_two_processes_see_the_views_of_one(whole):
    """Each its share of the batch; all views are those of one process."""
    runner, _ = whole
    loader, augment = runner.train_dataloader, runner.model.data_preprocessor

    def batches(rank, processes):
        sampler = copy.copy(loader.sampler)
        sampler.rank, sampler.world_size = rank, processes
        sampler.num_samples = len(loader.dataset) // processes
        sampler.set_epoch(1)
        size = loader.batch_size // processes
        for batch in BatchSampler(sampler, size, drop_last=True):
            samples = [loader.dataset[index] for index in batch]
            yield augment(loader.collate_fn(samples), True)['inputs']

    for one, first, second in zip(batches(0, 1), batches(0, 2), batches(1, 2)):
        for view, left, right in zip(one, first, second):
            # The sampler deals the images in turn. Products of matrices may
            # be summed in another order.
            torch.testing.assert_close(view[::2], left, rtol=0, atol=1e-4)
            torch.testing.assert_close(view[1::2], right, rtol=0, atol=1e-4)


def test_a_transform_that_draws_keeps_the_seed():

    class Draws:
        pass

    seed, draws = SeedAugmentation(), Draws()
    assert plain([seed, draws]) == [seed, draws]
    assert plain([seed]) == []


@pytest.mark.parametrize('sampler, multi_view, match', [
    ('DefaultSampler', None,
     r"DefaultSampler does not send.*sampler\.type='us3l_mm.SeededSampler'"),
    ('us3l_mm.SeededSampler',
     dict(type='MultiView', num_views=[2], transforms=[[
         dict(type='Posterize', bits=4)
     ]]), 'Posterize has no batched form.*augmentation=None'),
    ('us3l_mm.SeededSampler', dict(type='us3l_mm.SwapRedBlue'),
     r"ends with MultiView and PackInputs, got \['SeedAugmentation', 'Swap")])
def test_what_cannot_be_batched_is_refused(sampler, multi_view, match,
                                           tmp_path):
    cfg = small_cfg(tmp_path, **{
        **BATCHED, 'train_dataloader.sampler.type': sampler})
    if multi_view is not None:
        cfg.train_dataloader.dataset.pipeline[1] = multi_view
    cfg.default_hooks.pop('exact_resume')
    cfg.default_hooks.pop('preflight')
    with pytest.raises(ValueError, match=match):
        Runner.from_cfg(cfg).train()


def test_images_of_several_sizes_are_collated(tmp_path):
    """The workers send them as they are, and the crop makes them alike."""
    cfg = small_cfg(tmp_path, **{**BATCHED, 'train_cfg.max_epochs': 1})
    runner, views = Runner.from_cfg(cfg), Views()
    load = runner.train_dataloader.dataset.get_data_info

    def get_data_info(index):
        info = load(index)
        return dict(info, img=info['img'][:32 - index % 3])

    runner.train_dataloader.dataset.get_data_info = get_data_info
    runner.register_hook(views, priority='VERY_LOW')
    runner.train()
    assert [pair.shape for _, pair in views.views] == [(8, 2, 3, 16, 16)] * 3


def test_digits_are_rendered_in_batches(tmp_path):
    """By a transform of this package, which brings its batched form."""
    view = [dict(type='us3l_mm.RenderDigit')]
    _, views = run(
        tmp_path, **{
            'train_cfg.max_epochs': 1,
            'train_dataloader.dataset.render': False,
            'train_dataloader.dataset.pipeline.1.transforms': [view]})
    for _, pair in views:
        assert pair.shape == (8, 2, 3, 32, 32)
        assert not torch.equal(pair[:, 0], pair[:, 1])
