# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A checkpoint from anywhere in a run continues it, bit by bit."""
import copy

import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.hooks import Hook
from mmengine.runner import Runner
from small_run import small_cfg

from us3l_mm.datasets import SeededSampler
from us3l_mm.engine.data_position import Layout
from us3l_mm.export.checkpoint_io import load_weights

ITERATIONS = {
    'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=10),
    'param_scheduler': [dict(type='CosineAnnealingLR', by_epoch=False,
                             T_max=10)]}
# Dropout draws from PyTorch's state.
DRAWING = {'model.backbone.drop_path_rate': 0.5}


class Watch(Hook):
    """Notes which images each iteration saw, and at which learning rate."""

    priority = 'LOWEST'

    def __init__(self):
        self.seen, self.lr = {}, {}

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        self.seen[runner.iter] = [
            int(sample.sample_idx) for sample in data_batch['data_samples']]
        self.lr[runner.iter] = runner.optim_wrapper.get_lr()['lr'][0]


def run(work_dir, resume=None, **changes):
    changes = copy.deepcopy(changes)  # MMEngine takes _delete_ out of it
    cfg = small_cfg(work_dir, **{
        'train_dataloader.dataset.num_images': 40,
        'train_cfg': dict(by_epoch=True, max_epochs=2), 'default_hooks.checkpoint.by_epoch': False,
        **DRAWING, **changes})
    if not cfg.train_dataloader.num_workers:
        # Without SeedAugmentation, from python's and NumPy's as well.
        cfg.train_dataloader.dataset.pipeline.pop(0)
    cfg.train_dataloader.dataset.pipeline[-1].meta_keys = ('sample_idx', )
    if resume is not None:
        cfg.update(resume=True, load_from=str(resume))
    runner, watch = Runner.from_cfg(cfg), Watch()
    runner.register_hook(watch)
    runner.train()
    return runner, watch


def state_of(runner):
    optimizer = runner.optim_wrapper.state_dict()['state']
    return copy.deepcopy((runner.model.state_dict(), {
        f'{key}': state['momentum_buffer']
        for key, state in optimizer.items()}))


def assert_same(one, other):
    for left, right in zip(state_of(one), state_of(other)):
        assert left.keys() == right.keys() and left
        for name, value in left.items():
            assert torch.equal(value, right[name]), name


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
@pytest.mark.parametrize('workers', [0, 1])
def test_any_checkpoint_continues_the_run_to_the_bit(tmp_path, loop, workers):
    changes = {'train_dataloader.num_workers': workers,
               'train_dataloader.persistent_workers': bool(workers)}
    if loop == 'iterations':
        changes.update(ITERATIONS)
    whole, watched = run(tmp_path / 'whole', **changes)
    for step in (3, 5, 7) if not workers else (7, ):
        again, watched_again = run(
            tmp_path / f'from-{step}', tmp_path / f'whole/iter_{step}.pth',
            **changes)
        assert [*watched_again.seen] == [*range(step, 10)]
        for iteration, images in watched_again.seen.items():
            assert images == watched.seen[iteration]
            assert watched_again.lr[iteration] == watched.lr[iteration]
        assert_same(whole, again)
        assert (again.epoch, again.iter) == (whole.epoch, whole.iter)
