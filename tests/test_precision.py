# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Precision and memory: what must not change what is trained."""
import naive
import pytest
import torch
from algorithms import (model_cfg, small_algorithm, student_parameters,
                        train_step)
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner
from small_run import small_cfg
from test_train_step import RecordingSGD

from us3l_mm.engine import CpuAmpOptimWrapper, MultiPassOptimWrapper
from us3l_mm.engine.wrappers import multi_pass_optim_wrapper
from us3l_mm.models import GroupDecay, Plan, at_width
from us3l_mm.models.selfsup import Batch
from us3l_mm.models.selfsup.passes import UPDATE_MODES
from us3l_mm.registry import MODELS, OPTIM_WRAPPERS

WIDTHS = [1.0, 0.6, 0.25]
SMALL = dict(type='us3l_mm.SlimmableResNet_CIFAR', depth=18, base_channels=16,
             stem_channels=16, num_stages=2, strides=(1, 2), dilations=(1, 1),
             out_indices=(1, ))


def algorithm_of(update_mode, **options):
    torch.manual_seed(0)
    options.setdefault('backbone', SMALL)
    algorithm = small_algorithm(update_mode=update_mode, **options)
    return algorithm, student_parameters(algorithm)


def train(algorithm, wrapper, batches=2, widths=WIDTHS):
    wrapper.initialize_count_status(torch.nn.Identity(), 0, batches)
    for seed in range(batches):
        train_step(algorithm, naive.batch(seed)[0], wrapper, widths)
    return {k: v.detach().clone() for k, v in algorithm.state_dict().items()}


def regularised(wrapper, named):
    wrapper.regularise(GroupDecay(named.items()))
    return wrapper


def sgd(named, **kwargs):
    return regularised(
        MultiPassOptimWrapper(
            optimizer=RecordingSGD(named, lr=.05, momentum=.9), **kwargs),
        named)


def check_equal(actual, expected, atol=1e-10):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=0, atol=atol,
            msg=lambda text, name=name: f'{name}: '
            f'{text}')


def scaled_wrapper(monkeypatch, named, scale, **kwargs):
    """The wrapper for GPUs, with a loss scale, on a CPU in float64."""
    for module in (amp_optimizer_wrapper, multi_pass_optim_wrapper):
        monkeypatch.setattr(module, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler',
                        lambda: torch.amp.GradScaler('cpu', scale))
    optimizer = RecordingSGD(named, lr=.05, momentum=.9)
    wrapper = OPTIM_WRAPPERS.build(
        dict(type='us3l_mm.MultiPassAmpOptimWrapper', optimizer=optimizer,
             **kwargs))
    assert isinstance(wrapper, MultiPassOptimWrapper)
    return regularised(wrapper, named)


@pytest.mark.parametrize('kwargs', [{}, dict(clip_grad=dict(max_norm=.1))],
                         ids=['plain', 'clipped'])
@pytest.mark.parametrize('update_mode', UPDATE_MODES)
def test_a_loss_scale_changes_nothing(monkeypatch, update_mode, kwargs):
    algorithm, named = algorithm_of(update_mode)
    expected = train(algorithm, sgd(named, **kwargs))
    algorithm, named = algorithm_of(update_mode)
    wrapper = scaled_wrapper(monkeypatch, named, 1024.0, **kwargs)
    check_equal(train(algorithm, wrapper), expected)


def test_each_step_that_overflows_lowers_the_loss_scale(monkeypatch):
    algorithm, named = algorithm_of('sequential')
    before = {k: p.detach().clone() for k, p in named.items()}
    wrapper = scaled_wrapper(monkeypatch, named, 2.0**26)
    wrapper.loss_scaler.set_backoff_factor(2.0**-6)
    for p in named.values():  # infinite above 65504
        p.register_hook(lambda grad: grad.half().double())
    skipped = []
    for seed in range(4):
        log = train_step(algorithm, naive.batch(seed)[0], wrapper)
        skipped.append(int(log['skipped']))
        if skipped[-1] == seed + 1:
            check_equal({k: p.detach() for k, p in named.items()}, before, 0)
    assert skipped[0] == 1 and skipped[-1] < 4
    assert wrapper.loss_scaler.get_scale() == 2.0**(26 - 6 * skipped[-1])
    assert len(wrapper.optimizer.steps) == 4 - skipped[-1]


def test_the_loss_scale_and_the_skipped_steps_are_saved(monkeypatch):
    algorithm, named = algorithm_of('sequential')
    wrapper = scaled_wrapper(monkeypatch, named, 2.0**12)
    wrapper.skipped += 3
    state = wrapper.state_dict()
    assert state['skipped'] == 3 and state['loss_scaler']['scale'] == 2.0**12
    resumed = scaled_wrapper(monkeypatch, named, 1.0)
    resumed.load_state_dict(state)
    assert int(resumed.skipped) == 3
    assert resumed.loss_scaler.get_scale() == 2.0**12
    log = train_step(algorithm, naive.batch()[0], resumed)
    assert int(log['skipped']) == 3


@pytest.mark.parametrize('update_mode', UPDATE_MODES)
def test_each_step_is_clipped_with_its_regularisation(update_mode):
    algorithm, named = algorithm_of(update_mode)
    wrapper = sgd(named)
    train(algorithm, wrapper, 1)
    free = wrapper.optimizer.steps[0]
    norm = sum(g.square().sum() for g in free.values())**.5
    algorithm, named = algorithm_of(update_mode)
    wrapper = sgd(named, clip_grad=dict(max_norm=float(norm) / 3))
    train(algorithm, wrapper, 1)
    assert len(
        wrapper.optimizer.steps) == (3 if update_mode == 'sequential' else 1)
    for name, value in free.items():
        torch.testing.assert_close(wrapper.optimizer.steps[0][name], value / 3,
                                   rtol=1e-5, atol=1e-12)
    for step in wrapper.optimizer.steps:
        assert sum(g.square().sum()
                   for g in step.values())**.5 < float(norm) / 3 + 1e-6


@pytest.mark.parametrize('scaled', [False, True], ids=['plain', 'scaled'])
def test_batches_add_up_to_one_update(monkeypatch, scaled):
    """Seven batches in threes: the last one is an update by itself."""
    algorithm, named = algorithm_of('accumulate')
    wrapper = scaled_wrapper(monkeypatch, named, 512.0,
                             accumulative_counts=3) if scaled else sgd(
                                 named, accumulative_counts=3)
    actual = train(algorithm, wrapper, 7)

    algorithm, named = algorithm_of('accumulate')
    optimizer = torch.optim.SGD(named.values(), lr=.05, momentum=.9)
    plan = Plan.sampled(WIDTHS)
    for group in ((0, 1, 2), (3, 4, 5), (6, )):
        algorithm.teacher.update()  # once for each update of the student
        for seed in group:
            views = algorithm.views(naive.batch(seed)[0])
            targets = algorithm.teacher(views, 1.0)
            batch = Batch(views, plan, targets={
                'teacher': targets,
                plan.base: targets})
            for pass_ in plan.passes:
                with at_width(algorithm, pass_.subnet):
                    losses = algorithm.loss(batch, pass_)['losses']
                decay = sum(
                    5e-5 * p.square().sum() for name, p in named.items()
                    if not (pass_.role == 'base' and 'predictor' in name))
                (sum([*losses.values(), decay]) / len(group)).backward()
        optimizer.step()
        optimizer.zero_grad()
    check_equal(actual, algorithm.state_dict())


def test_sequential_steps_do_not_add_up_over_batches():
    algorithm, named = algorithm_of('sequential')
    with pytest.raises(
            ValueError, match="step after each pass.*got "
            "accumulative_counts=2.*update_mode='accumulate'"):
        train(algorithm, sgd(named, accumulative_counts=2))


@pytest.mark.parametrize('update_mode', ['sequential', 'accumulate'])
def test_activation_checkpoints_give_the_same_gradients(update_mode):
    algorithm, named = algorithm_of(update_mode)
    wrapper = sgd(named)
    train(algorithm, wrapper)
    expected = wrapper.optimizer.steps
    algorithm, named = algorithm_of(update_mode, backbone=dict(
        SMALL, with_cp=True))
    runs = []
    block = algorithm.backbone.layer1[0].conv1
    block.register_forward_hook(lambda *_: runs.append(block.width))
    wrapper = sgd(named)
    train(algorithm, wrapper)
    # Two views, each again in the backward pass, at the same width.
    assert runs == [w for w in WIDTHS for _ in range(4)] * 2
    assert len(wrapper.optimizer.steps) == len(expected)
    for step, other in zip(wrapper.optimizer.steps, expected):
        check_equal(step, other)


def test_channels_last_trains_the_same():
    states = []
    for channels_last in (False, True):
        algorithm, named = algorithm_of('sequential',
                                        channels_last=channels_last)
        seen = []
        algorithm.backbone.layer1[0].conv1.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0].is_contiguous(
                memory_format=torch.channels_last)))
        states.append(train(algorithm, sgd(named)))
        weight = algorithm.backbone.layer2[0].conv1.weight
        assert {
            weight.is_contiguous(memory_format=torch.channels_last),
            *seen} == {channels_last}
    check_equal(*states, atol=1e-8)


@pytest.mark.parametrize('name, arguments, expected', [
    ('SlimmableResNet', dict(depth=18), True),
    ('SlimmableResNet_CIFAR', dict(depth=18), True),
    ('SlimmableMobileNetV2', {}, True),
    ('GatedResNet_CIFAR', dict(depth=18), True),
    ('SlimmableViT', dict(arch='tiny', img_size=32, patch_size=16), False)])
def test_layout_is_what_the_backbone_prefers(name, arguments, expected):
    backbone = dict(type=f'us3l_mm.{name}', **arguments)
    weights = []
    for given, is_last in ((None, expected), (False, False), (True, True)):
        torch.manual_seed(0)
        algorithm = MODELS.build(
            model_cfg('byol', backbone, channels_last=given))
        algorithm.init_weights()
        weights.append([p.detach() for p in algorithm.backbone.parameters()])
        for conv in (algorithm.backbone, algorithm.teacher.backbone):
            weight = next(p for p in conv.parameters() if p.dim() == 4)
            assert (weight.stride(1) == 1) == is_last
    for same in zip(*weights):  # the random numbers of a seed
        assert torch.equal(same[0], same[1]) and torch.equal(*same[1:])


def test_bfloat16_on_a_cpu(tmp_path):
    logs = []
    for kind in ('us3l_mm.MultiPassOptimWrapper',
                 'us3l_mm.MultiPassAmpOptimWrapper'):
        cfg = small_cfg(
            tmp_path, **{
                'optim_wrapper.type': kind,
                'optim_wrapper.optimizer.lr': 1e-4})
        cfg.default_hooks.sampler.widths = WIDTHS
        cfg.train_cfg.max_epochs = 1
        runner = Runner.from_cfg(cfg)
        model, dtypes, losses = runner.model, set(), []
        model.backbone.layer2.register_forward_hook(
            lambda _, __, out, dtypes=dtypes: dtypes.add(out.dtype))
        model.head.loss_module.register_forward_hook(
            lambda _, args, out, dtypes=dtypes: dtypes.update([
                ('loss', args[0].dtype), ('loss', out.dtype)]))
        step = model.train_step
        model.train_step = lambda *a, step=step, losses=losses, **k: (
            losses.append(step(*a, **k)) or losses[-1])
        runner.train()
        half = torch.bfloat16 if 'Amp' in kind else torch.float32
        assert dtypes == {half, ('loss', torch.float32)}
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        logs.append({k: float(v) for k, v in losses[0].items()})
    assert logs[0].keys() == logs[1].keys()
    for name, value in logs[0].items():
        assert logs[1][name] == pytest.approx(value, abs=0.03), name
    assert logs[0] != logs[1]


def test_other_halves_are_refused_on_a_cpu():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1)
    with pytest.raises(ValueError, match="is bfloat16, got dtype='float16'"):
        CpuAmpOptimWrapper(optimizer=optimizer, dtype='float16')
    with pytest.raises(ValueError, match="is bfloat16, got dtype='float16'"):
        OPTIM_WRAPPERS.build(
            dict(type='us3l_mm.MultiPassAmpOptimWrapper', optimizer=optimizer,
                 dtype='float16'))
