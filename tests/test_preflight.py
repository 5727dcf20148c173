# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What would train something else is refused before the first iteration."""
import pytest
from mmengine.runner import Runner
from small_run import VIEW, small_cfg

ONE_VIEW = [
    dict(type='us3l_mm.SeedAugmentation'),
    dict(type='MultiView', num_views=[1], transforms=[VIEW]),
    dict(type='PackInputs')]
BAD = {
    'one view': ({
        'train_dataloader.dataset.pipeline':
        ONE_VIEW}, '2 views of each image, got 1'),
    'weight decay': ({
        'optim_wrapper.optimizer.weight_decay':
        1e-4}, 'weight_decay=0.0001 on .* clear_weight_decay=True'),
    'sync_bn': (dict(sync_bn='torch'), "sync_bn='torch' would replace"),
    'accumulation': ({
        'optim_wrapper.accumulative_counts': 2}, 'got accumulative_counts=2'),
    'low width': ({
        'default_hooks.sampler.widths':
        [1.0, 0.1]}, r'Width 0.1 is outside the range \[0.25, 1\]'),
    'no width': ({
        'default_hooks.sampler.widths': [0]}, r'in \(0, 1\], got 0.0'),
    'word': ({
        'default_hooks.sampler.widths':
        ['half']}, "one of full, dense and gated, got 'half'"),
    'NaN': ({
        'default_hooks.sampler.width_range': (float('nan'), 1.)}, 'got nan'),
    'wide': ({
        'default_hooks.sampler.width_range': (.25, 1.5)}, 'got 1.5'),
    'gates': ({
        'default_hooks.sampler.widths': ['dense', 'gated']}, 'has no gates'),
    'source': ({
        'model.base_from': 'self'}, "base_from is one of .*'self'"),
    'old update': ({
        'model.update_mode': 'joint'}, "one of .*'accumulate'.*, got 'joint'"),
    'stock wrapper': ({
        'optim_wrapper.type':
        'OptimWrapper'}, "optim_wrapper.type='us3l_mm.MultiPassOptimWrapper'"),
    'channels': ({
        'model.neck.in_channels':
        64}, 'have 32 channels, got neck.in_channels=64'),
    'frozen': ({
        'model.backbone.frozen_stages':
        1}, 'backbone.frozen_stages=1 freezes batch norms'),
    'norm_eval': ({
        'model.backbone.norm_eval':
        True}, 'backbone.norm_eval=True freezes batch norms'),
    'range and list': ({
        'default_hooks.sampler.widths': [.5],
        'default_hooks.sampler.width_range': (.25, 1.)}, 'give one of them'),
    'features of a narrow base': ({
        'default_hooks.sampler.widths': [.5],
        'model.feature_distiller':
        {}}, 'widest sub-network in training is w0.50 of 1'),
    'two predictors': ({
        'model.share_predictor':
        True}, 'share_predictor=True distils through the predictor'),
    'sampler': ({
        'train_dataloader.sampler.type': 'DefaultSampler'}, 'SeededSampler'), }


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_an_error_before_training(tmp_path, name):
    changes, message = BAD[name]
    cfg = small_cfg(tmp_path, **changes)
    steps = []
    with pytest.raises(Exception, match=message) as error:
        runner = Runner.from_cfg(cfg)
        runner.model.loss = lambda *a, **k: steps.append(1)
        runner.train()
    # MMEngine rewraps what a constructor raises, type and text.
    assert error.type in (ValueError, TypeError)
    assert not steps


def test_a_run_without_a_sampler_is_an_error_before_a_step(tmp_path):
    cfg = small_cfg(tmp_path)
    del cfg.default_hooks.sampler
    runner = Runner.from_cfg(cfg)
    runner.model.loss = None
    with pytest.raises(RuntimeError, match='The batch has no plan'):
        runner.train()
