# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A collapse is noticed, once, and nothing else is taken for one."""
from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import Runner
from small_run import small_cfg

from us3l_mm.engine import CollapseMonitorHook

# What configs/us3l/us3l_resnet18_demo-collapse_digits.py changes: an absolute
# distance to the network's own, moving output.
COLLAPSING = {
    'model.base_from': 'online',
    'model.distill_from': 'online',
    'model.head.predictor': None}


def log_of(tmp_path, changes, **hook):
    """Train sixty iterations; the text of the log."""
    cfg = small_cfg(
        tmp_path, **{
            'optim_wrapper.optimizer.lr': .2,
            'train_cfg.max_epochs': 20,
            **changes})
    cfg.default_hooks.collapse = dict(type='us3l_mm.CollapseMonitorHook',
                                      begin=8, interval=4, **hook)
    try:
        Runner.from_cfg(cfg).train()
    finally:
        log, = tmp_path.glob('*/*.log')
        text = log.read_text()
    return text


def test_a_collapse_is_warned_of_once_and_loudly(tmp_path):
    text = log_of(tmp_path, COLLAPSING, patience=12)
    assert text.count('The embeddings have collapsed') == 1
    assert '!' * 79 in text and "action='stop'" in text
    assert "base_from='teacher'" in text


def test_a_sound_run_is_left_alone(tmp_path):
    text = log_of(tmp_path, {}, patience=12)
    assert 'collapsed' not in text


def test_a_collapse_ends_training_if_asked(tmp_path):
    with pytest.raises(
            RuntimeError, match='spread_max is 0.* under 0.15 for '
            '12 iterations'):
        log_of(tmp_path, COLLAPSING, patience=12, action='stop')


def alarm(spreads, key='spread_max', **kwargs):
    """The iteration, from 1, in which training would stop."""
    hook = CollapseMonitorHook(threshold=.2, patience=6, begin=10, interval=3,
                               action='stop', **kwargs)
    hook.before_train(None)
    for i, value in enumerate(spreads):
        outputs = {key: torch.tensor(value)}
        try:
            hook.after_train_iter(
                SimpleNamespace(iter=i, model=torch.nn.Identity()), i, None,
                outputs)
        except RuntimeError:
            return i + 1
    return None


def test_only_a_lasting_collapse_counts():
    low, high, nan = .05, .9, float('nan')
    assert alarm([low] * 30) == 16  # ten that do not count, then six
    assert alarm([low] * 10 + [high] * 20) is None
    assert alarm([high] * 20 + [low] * 5 + [high] * 20) is None
    assert alarm([high] * 13 + [low] * 9) == 19
    assert alarm([low] * 13 + [high] * 3 + [low] * 20) == 22  # counts anew
    assert alarm([low, .5] * 20) is None  # the mean is above
    assert alarm([nan] * 40) is None
    assert alarm([low] * 30, 'spread_min') == 16  # the narrow ones alone
    assert alarm([low] * 30, 'spread_teacher') is None
    assert alarm([low] * 30, 'spread_min', indicators=['spread_max']) is None


@pytest.mark.parametrize('bad, says', [
    (dict(action='cry'), "is 'warn' or 'stop', got 'cry'"),
    (dict(threshold=0.), 'between 0 and 1, got 0.0'),
    (dict(patience=0), 'at least 1, .* got patience=0')])
def test_useless_settings_are_refused(bad, says):
    with pytest.raises(ValueError, match=says):
        CollapseMonitorHook(**bad)
