# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Bad inputs of tools/train.py for dense + gated SSL."""
import pytest

from .harness import ROOT, check, main_of, run

# A small network on digits of 16 pixels
CONFIG = f"""
_base_ = '{ROOT}/configs/us3l/us3l_resnet18_demo_digits.py'
train_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(num_images=256))
default_hooks = dict(
    group_reg=None,
    sampler=dict(_delete_=True, type='us3l_mm.DynamicSamplerHook',
                 widths=['dense']))
model = dict(
    _delete_=True,
    type='us3l_mm.DenseGatedSSL',
    backbone=dict(
        type='us3l_mm.GatedResNet', depth=18, base_channels=16,
        stem_channels=16, num_stages=2, strides=(1, 2), dilations=(1, 1),
        out_indices=(1, )),
    neck=dict(
        type='us3l_mm.SlimmableProjector', in_channels=32, hid_channels=16,
        out_channels=8, num_layers=2, with_last_bn=False),
    head=dict(type='us3l_mm.PairHead', loss=dict(type='us3l_mm.VICRegLoss')),
    budget=dict(target=0.5))
"""

# --cfg-options, and what the message has to say
OPTIONS = [
    # the budget
    ('model.budget.target=0.05', 'target=0.05', 'Use a target between 0.'),
    ('model.budget.target=0', 'target', '(0, 1]', 'got 0'),
    ('model.budget.target=1.5', 'target', '(0, 1]', 'got 1.5'),
    ('model.budget.target=nan', 'target=nan', 'finite'),
    ('model.budget.target=half', 'target', '(0, 1]', "got 'half'"),
    ('model.budget.weight=-5', 'weight is at least 0, got -5'),
    ('model.budget.bound=cubic', 'bound is one of', "got 'cubic'"),
    ('model.budget.anneal=fast', "anneal is at least 0, got 'fast'"),
    ('model.budget.lamda=5', 'ComputeBudget', 'lamda'),
    ('model.budget=None', 'budget=None', 'budget=dict(target=0.3)'),
    # gates and modes
    ('model.backbone.temperature=0', 'temperature of a gate is above 0',
     'got 0'),
    ('model.backbone.temperature=-1', 'above 0', 'got -1'),
    ('model.backbone.reduction=0', 'reduction of a gate', 'got 0'),
    ('model.backbone.reduction=17', 'an integer from 1 to 16', 'got 17'),
    ('model.backbone.depth=20', 'depth=20', '[18, 34, 50'),
    ('model.backbone.norm_cfg.type=LN', "got 'LN'", 'SwitchableBN'),
    ('model.backbone.with_cp=True', 'with_cp=True', 'leave it out'),
    ('model.backbone.type=us3l_mm.SlimmableResNet',
     'SlimmableResNet has no gates', 'us3l_mm.GatedResNet'),
    ('model.backbone.type=us3l_mm.GatedResNt',
     "Did you mean 'us3l_mm.GatedResNet'"),
    ('model.modes=[gated,sparse]', 'modes', "'sparse'"),
    ('model.modes=[gated]', 'modes are those of two views'),
    ('model.modes=[dense,dense]', 'dense views have none'),
    ('model.gate_warmup=1.0', 'gate_warmup', '[0, 1)', 'got 1.0'),
    ('model.gate_warmup=10', 'gate_warmup', 'got 10'),
    ('model.swap_views=abc', "swap_views='abc'", 'bool'),
    ('model.rotation.weight=1 model.modes=[gated,gated]', 'rotation',
     'Leave out rotation'),
    # the plan
    ("default_hooks.sampler.widths=['dense','gated']",
     "plan of ['w1.00', 'gated']", 'widths=[1.0]', 'model.modes'),
    ('default_hooks.sampler.widths=[gated]', "plan of ['gated']",
     'model.modes'),
    ('default_hooks.sampler.widths=[0.5]', 'Width 0.5', 'range [1, 1]'),
    ('default_hooks.diagnosis.type=us3l_mm.GradientDiagnosisHook',
     'DenseGatedSSL has one', 'diagnosis=None'),
    # batches
    ('train_dataloader.batch_size=1', 'batch_size=1', 'batch_size=2 or more'),
    # the optimizer
    ('optim_wrapper.optimizer.type=us3l_mm.LRAS', "Did you mean 'us3l_mm.LARS'"
     ),
    ('optim_wrapper.optimizer.type=us3l_mm.LARS '
     'optim_wrapper.optimizer.etta=1', 'Did you mean eta?'),
    ('optim_wrapper.optimizer.type=us3l_mm.LARS '
     'optim_wrapper.optimizer.eta=-1', 'eta is at least 0, got -1'),
    ('optim_wrapper.optimizer.type=us3l_mm.LARS '
     'optim_wrapper.optimizer.clip=abc', "clip='abc'", 'bool'),
    ('optim_wrapper.optimizer.type=us3l_mm.LARS optim_wrapper.paramwise_cfg.'
     'custom_keys.bn.lars_exclude=True', 'lars_exclude', 'exclude_flat=True'),
]


@pytest.fixture(scope='module')
def main():
    return main_of('train')


@pytest.fixture(autouse=True)
def keep_environment(monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')


@pytest.mark.parametrize('options, needles', [(o[0], o[1:]) for o in OPTIONS],
                         ids=[o[0] for o in OPTIONS])
def test_options(main, tmp_path, capsys, options, needles):
    (tmp_path / 'gated.py').write_text(CONFIG)
    check(
        run(main, ['gated.py', '--cfg-options', *options.split()], tmp_path,
            capsys), *needles)


def test_without_a_mistake_it_trains(main, tmp_path, capsys):
    (tmp_path / 'gated.py').write_text(CONFIG)
    outcome = run(main, [
        'gated.py', '--amp', '--cfg-options', 'train_cfg.max_epochs=1',
        'default_hooks.checkpoint.interval=1'], tmp_path, capsys)
    assert outcome.code == 0, outcome.output
    assert 'work_dirs/gated/epoch_1.pth' in outcome.written
    assert 'MultiPassAmpOptimWrapper' in (
        tmp_path / 'work_dirs/gated/gated.py').read_text()
