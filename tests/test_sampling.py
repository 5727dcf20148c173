# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Which widths each iteration trains."""
import random
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from us3l_mm.engine import DynamicSamplerHook
from us3l_mm.models import Pass, Plan, Subnet
from us3l_mm.models.backbones import SlimmableResNet_CIFAR
from us3l_mm.models.selfsup.plan import lowest_width, sandwich, stage_of

RANGE = (0.25, 1.0)


def naive_stage(iteration, total):
    """The quarter of training that has this iteration's beginning."""
    progress = Fraction(iteration, total)
    return sum(progress >= Fraction(quarter, 4) for quarter in (1, 2, 3))


def plans(hook, total, width_range=RANGE):
    return [hook.plan(i, total, width_range) for i in range(total)]


@pytest.mark.parametrize('epochs', [1, 2, 3, 4, 90, 100, 102, 400])
@pytest.mark.parametrize('epoch_length', [1, 7])
def test_training_has_four_equal_stages(epochs, epoch_length):
    """Also where 4 does not divide the epochs, and with a single one."""
    total = epochs * epoch_length
    found = plans(DynamicSamplerHook(), total)
    stages = [plan.stage for plan in found]
    assert stages == [naive_stage(i, total) for i in range(total)]
    assert stages == sorted(stages) and set(stages) <= {0, 1, 2, 3}
    if total >= 4:
        lengths = [stages.count(s) for s in range(4)]
        assert max(lengths) - min(lengths) <= 1
    if epochs % 4 == 0:  # then stages begin with an epoch
        assert [stages.index(s) / epoch_length for s in range(4)] == [
            0, epochs / 4, epochs / 2, 3 * epochs / 4]
    for plan in found:
        widths = [pass_.subnet.width for pass_ in plan.passes]
        assert widths[0] == 1.0 and widths == sorted(widths, reverse=True)
        assert widths[-1] == (1.0, 0.75, 0.5, 0.25)[plan.stage]
        assert len(widths) == (1 if plan.stage == 0 else 3)


def test_a_stage_after_the_last_iteration_is_the_last():
    assert stage_of(100, 100) == 3 and stage_of(5, 0) == 3


@pytest.mark.parametrize('num_stages', [1, 2, 3, 4, 5, 7])
def test_no_width_ever_leaves_the_range(num_stages):
    """Not by a rounding error either, which training would refuse."""
    for high in (1.0, 0.9, 0.75, 0.6):
        for low in (i / 100 for i in range(1, round(100 * high) + 1)):
            lowest = [
                lowest_width(s, (low, high), num_stages)
                for s in range(num_stages)]
            assert lowest == sorted(lowest, reverse=True)
            assert lowest[-1] == low
            assert lowest[0] == (high if num_stages > 1 else low)
            for grid in (None, 1 / 32, 0.1, 0.7):
                widths = sandwich(low, high, 4, 0, 0, grid)
                assert min(widths) == low and max(widths) == high


@pytest.mark.parametrize('grid', [None, 1 / 32, 1 / 16, 0.05, 0.1])
@pytest.mark.parametrize('num_samples', [2, 3, 4, 6])
def test_the_sandwich_has_each_end_once_and_random_widths_between(
        num_samples, grid):
    hook = DynamicSamplerHook(num_samples=num_samples, grid=grid)
    seen = set()
    for i in range(300):
        plan = hook.plan(900 + i, 1200, RANGE)
        widths = [pass_.subnet.width for pass_ in plan.passes]
        assert len(widths) == num_samples
        assert widths == sorted(widths, reverse=True)
        high, *middle, low = widths
        assert (high, low) == (1.0, 0.25)
        seen.update(middle)
        for width in middle:
            assert 0.25 + 1e-9 < width < 1 - 1e-9
            if grid is not None:
                assert width / grid == pytest.approx(round(width / grid))
    if grid is not None and num_samples > 2:  # all of the grid, not the ends
        inside = [
            k for k in range(1, 1000) if 0.25 + 1e-6 < k * grid < 1 - 1e-6]
        assert sorted(seen) == pytest.approx([k * grid for k in inside])


def test_random_widths_are_uniform():
    drawn = [sandwich(0.25, 1.0, 3, 0, i)[1] for i in range(4000)]
    hist = np.histogram(drawn, bins=6, range=(0.25, 1.0))[0] / 4000
    assert abs(hist - 1 / 6).max() < 0.03
    on_grid = [sandwich(0.25, 1.0, 3, 0, i, 1 / 8)[1] for i in range(5000)]
    counts = np.unique(on_grid, return_counts=True)
    assert counts[0].tolist() == [.375, .5, .625, .75, .875]
    assert abs(counts[1] / 5000 - 0.2).max() < 0.03


def test_a_grid_without_a_point_between_leaves_the_width_free():
    high, middle, low = sandwich(0.9, 1.0, 3, 0, 0, grid=0.5)
    assert (high, low) == (1.0, 0.9) and 0.9 < middle < 1.0


def test_a_fixed_list_and_a_single_width():
    fixed = DynamicSamplerHook(widths=[0.75, 1.0, 'w0.28125'])
    single = DynamicSamplerHook(widths=[0.5])
    for i in range(0, 100, 9):
        assert fixed.plan(
            i, 100, RANGE).passes == (Pass(Subnet(1.0), 'w1.00', 'base'),
                                      Pass(Subnet(0.75), 'w0.75', 'distil'),
                                      Pass(Subnet(0.28125), 'w0.28125',
                                           'distil'))
        assert single.plan(i, 100, RANGE) == Plan(
            (Pass(Subnet(0.5), 'w0.50'), ), progress=i / 100)
        assert fixed.plan(i, 100, RANGE).stage == 0


def test_a_list_of_dense_and_gated():
    plan = DynamicSamplerHook(widths=['gated', 'dense']).plan(0, 1, RANGE)
    assert [(str(p.subnet), p.name, p.role)
            for p in plan.passes] == [('w1.00', 'w1.00', 'base'),
                                      ('gated', 'gated', 'distil')]


def test_sandwich_without_dynamic_sampling():
    hook = DynamicSamplerHook(num_stages=1)
    for i, plan in enumerate(plans(hook, 21)):
        assert len(plan.passes) == 3 and plan.stage == 0
        assert plan.passes[-1].subnet.width == 0.25, i


def test_names_of_the_passes():

    def names(count):
        plan = Plan.sampled([1 / (i + 1) for i in reversed(range(count))], 2)
        assert plan.stage == 2 and plan.base is plan.passes[0]
        assert [p.role
                for p in plan.passes] == ['base'] + ['distil'] * (count - 1)
        assert plan.base.subnet.is_full
        assert all(p.weight == 1.0 for p in plan.passes)
        return [p.name for p in plan.passes]

    assert [names(count) for count in (1, 2, 3, 4, 5)
            ] == [['max'], ['max', 'min'], ['max', 'rand', 'min'],
                  ['max', 'rand0', 'rand1', 'min'],
                  ['max', 'rand0', 'rand1', 'rand2', 'min']]


# A pure function of seed and iteration ---------------------------------------


def test_widths_do_not_depend_on_or_touch_any_global_random_state():
    hook = DynamicSamplerHook(num_samples=5, grid=None)
    expected = plans(hook, 50)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist()
    backwards = [hook.plan(i, 50, RANGE) for i in reversed(range(50))]
    assert backwards[::-1] == expected
    assert states == (random.getstate(), np.random.get_state()[1].tolist())
    assert len({plan for plan in expected if plan.stage}) > 30


def test_seeds_draw_different_widths():
    first, second = (plans(DynamicSamplerHook(seed=seed), 40)[10:]
                     for seed in (0, 1))
    assert sum(a == b for a, b in zip(first, second)) < 8


@pytest.mark.parametrize('iteration, grid, drawn',
                         [(0, None, [0.6391575115370176, 0.6361636897928087]),
                          (1, None, [0.683074446009208, 0.56138258499086]),
                          (49, None, [0.7935016739729218, 0.5201585325687854]),
                          (0, 1 / 32, [0.78125, 0.65625]),
                          (49, 1 / 32, [0.84375, 0.625])])
def test_every_process_draws_the_same(iteration, grid, drawn):
    """As one has drawn once; Python's hashes differ in each of them."""
    assert sandwich(0.25, 1.0, 4, 3, iteration, grid) == [1.0, *drawn, 0.25]


class Recorder(BaseModel):
    """An algorithm that only writes down what it was told to train."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.backbone = nn.Identity()
        self.backbone.width_range = (0.25, 1.0)
        self.plans = []

    def forward(self, *args, **kwargs):
        """Not called."""

    def train_step(self, data, optim_wrapper):
        self.plans.append(data['plan'])
        return dict(loss=self.weight.sum())


def run(work_dir, by_epoch, iterations, **kwargs):
    model = Recorder()
    length = dict(max_epochs=iterations //
                  7) if by_epoch else dict(max_iters=iterations)
    runner = Runner(
        model, str(work_dir), train_dataloader=dict(
            batch_size=2, num_workers=0,
            dataset=[dict(inputs=i) for i in range(14)], sampler=dict(
                type='DefaultSampler' if by_epoch else 'InfiniteSampler',
                shuffle=True)), train_cfg=dict(by_epoch=by_epoch, **length),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)), custom_hooks=[
            DynamicSamplerHook()], log_level='ERROR', default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', by_epoch=by_epoch,
                                interval=1 if by_epoch else 7)), **kwargs)
    runner.train()
    return model.plans


@pytest.mark.parametrize('by_epoch', [True, False])
def test_a_runner_trains_the_plans_also_after_a_resume(tmp_path, by_epoch):
    expected = plans(DynamicSamplerHook(), 21)
    assert run(tmp_path, by_epoch, 21) == expected
    checkpoint = tmp_path / ('epoch_1.pth' if by_epoch else 'iter_7.pth')
    again = run(tmp_path / 'again', by_epoch, 21, resume=True,
                load_from=str(checkpoint))
    assert again == expected[7:]


# Bad input -------------------------------------------------------------------


@pytest.mark.parametrize('options, message', [
    (dict(num_samples=1), 'num_samples is an integer of at least 2, got 1'),
    (dict(num_samples=3.0), r'num_samples is an integer.*got 3\.0'),
    (dict(num_stages=0), 'num_stages is an integer of at least 1, got 0'),
    (dict(grid=0), r'grid is in \(0, 1\] or None, got 0'),
    (dict(grid=1.5), r'grid is in \(0, 1\] or None, got 1\.5'),
    (dict(grid=float('nan')), r'grid is in.*got nan'),
    (dict(widths=[]), 'has at least one'),
    (dict(widths=[0.5, 1.0, 0.5]), 'each named once'),
    (dict(widths=['half']), "got 'half'"),
    (dict(widths=[0.5, 1.5]), r'multiplier in \(0, 1\], got 1\.5'),
    (dict(width_range=(0.0, 1.0)), r'multiplier in \(0, 1\], got 0\.0'),
    (dict(width_range=(1.0, 0.25)), r'\(lowest, highest\), got \(1\.0, 0\.25'),
    (dict(width_range=0.25), 'width_range is a pair'), ], ids=str)
def test_arguments_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DynamicSamplerHook(**options)


@pytest.mark.parametrize('options', [
    dict(widths=[1.0, 0.2]),
    dict(width_range=(0.2, 1.0))], ids=str)
def test_a_width_that_the_backbone_lacks_is_refused_before_training(
        tmp_path, options):
    runner = SimpleNamespace(model=Recorder(), max_iters=100)
    with pytest.raises(
            ValueError, match=r'0\.2 is outside the range \[0\.25, '
            r'1\] of this network'):
        DynamicSamplerHook(**options).before_train(runner)


def test_random_widths_of_switchable_norms_are_refused_before_training():
    model = Recorder()
    model.backbone = SlimmableResNet_CIFAR(
        18, base_channels=16, stem_channels=16, norm_cfg=dict(
            type='SwitchableBN', widths=[1.0, 0.5, 0.25]))
    runner = SimpleNamespace(model=model, max_iters=100)
    with pytest.raises(ValueError, match='no batch norm of its own'):
        DynamicSamplerHook().before_train(runner)
    with pytest.raises(ValueError, match=r'of its own for w0\.75'):
        DynamicSamplerHook(widths=[1.0, 0.75]).before_train(runner)
    DynamicSamplerHook(widths=[1.0, 0.5, 0.25]).before_train(runner)
    assert model.backbone.conv1.width == 1.0


def test_gates_that_the_network_lacks_are_refused_before_training():
    model = Recorder()
    model.backbone = SlimmableResNet_CIFAR(18, base_channels=16,
                                           stem_channels=16)
    runner = SimpleNamespace(model=model, max_iters=100)
    with pytest.raises(ValueError, match='has no gates'):
        DynamicSamplerHook(widths=['dense', 'gated']).before_train(runner)
