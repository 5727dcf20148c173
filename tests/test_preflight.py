# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What would train something else is refused before the first iteration."""
import pytest
from mmengine.runner import Runner
from small_run import VIEW, small_cfg

ONE_VIEW = [
    dict(type='us3l_mm.SeedAugmentation'),
    dict(type='MultiView', num_views=[1], transforms=[VIEW]),
    dict(type='PackInputs')
]
BAD = {
    'one view': ({'train_dataloader.dataset.pipeline':
                  ONE_VIEW}, 'two views of each image, got 1'),
    'weight decay':
    ({'optim_wrapper.optimizer.weight_decay':
      1e-4}, 'weight_decay=0.0001 on .* clear_weight_decay=True'),
    'sync_bn': (dict(sync_bn='torch'), "sync_bn='torch' would replace"),
    'accumulation': ({'optim_wrapper.accumulative_counts':
                      2}, 'got accumulative_counts=2'),
    'low width': ({'default_hooks.sampler.widths':
                   [1.0,
                    0.1]}, r'Width 0.1 is outside the range \[0.25, 1.0\]'),
    'no width': ({'default_hooks.sampler.widths':
                  [0]}, r'in \(0, 1\], got 0.0'),
    'word': ({'default_hooks.sampler.widths':
              ['half']}, "got 'half' of type str"),
    'NaN': ({'default_hooks.sampler.width_range':
             (float('nan'), 1.)}, 'got nan'),
    'wide': ({'default_hooks.sampler.width_range': (.25, 1.5)}, 'got 1.5'),
    'method': ({'model.base_method':
                'mocov9'}, "one of .*'byol'.*, got 'mocov9'"),
    'frozen': ({'model.backbone.frozen_stages':
                1}, 'backbone.frozen_stages=1 freezes batch norms'),
    'norm_eval': ({'model.backbone.norm_eval':
                   True}, 'backbone.norm_eval=True freezes batch norms'),
    'range and list': ({
        'default_hooks.sampler.widths': [.5],
        'default_hooks.sampler.width_range': (.25, 1.)
    }, 'give one of them'),
    'features of a narrow base':
    ({'default_hooks.sampler.widths': [.5], 'model.feature_distill':
      {}}, 'widest sub-network in training is 0.5 of 1'),
    'two predictors': ({'model.share_head': True},
                       'share_head=True distils through the predictor'),
    'sampler': ({'train_dataloader.sampler.type':
                 'DefaultSampler'}, 'SeededSampler'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_an_error_before_training(tmp_path, name):
    changes, message = BAD[name]
    cfg = small_cfg(tmp_path, **changes)
    steps = []
    with pytest.raises(Exception, match=message) as error:
        runner = Runner.from_cfg(cfg)
        runner.model.train_step = lambda *a, **k: steps.append(1)
        runner.train()
    # MMEngine rewraps what a constructor raises, type and text.
    assert error.type in (ValueError, TypeError)
    assert not steps
