# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Group regularisation against a loss term in loops over groups."""
import logging
from types import SimpleNamespace

import naive
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from small_run import small_cfg
from torch import nn

from us3l_mm.engine import GroupRegHook
from us3l_mm.models import GroupRegulariser, Plan

CNN, VIT = {1: 0, 4: 0}, {2: 1}
# Large, so that a mistake in it cannot hide behind the other losses.
LAM = 0.02


def naive_reg(params, is_base, lam, alpha, mode='linear', group_dims=CNN,
              groups=8, ramp=1.0):
    """Section 5 of the specification, word by word."""
    total = 0
    for name, p in params.items():
        if name.startswith(('feature_distiller', 'teacher')):
            continue
        if is_base and 'predictor' in name:
            continue
        if p.dim() not in group_dims:
            total = total + lam * (p**2).sum()
            continue
        dim = group_dims[p.dim()]
        channels = p.shape[dim]
        size = channels // groups
        for g in range(groups):
            stop = channels if g == groups - 1 else (g + 1) * size
            part = p.narrow(dim, g * size, stop - g * size)
            lam_g = lam * (1 - ramp * alpha * g if mode == 'linear' else
                           (1 - ramp + ramp * alpha)**g)
            total = total + lam_g * (part**2).sum()
    return total


# The term itself -------------------------------------------------------------

SHAPES = [(8, ), (20, ), (3, ), (1, ), (67, ), (64, 3, 3, 3), (20, 16, 1, 1),
          (3, 5, 1, 1), (24, 20), (16, 3), (10, 64), (4, 5, 6), ()]


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('group_dims', [CNN, VIT, {1: 0, 2: 0, 4: 1}],
                         ids=['cnn', 'vit', 'other'])
@pytest.mark.parametrize('mode, alpha', [('linear', 0.05), ('linear', 1 / 7),
                                         ('linear', 0.0), ('exp', 0.9),
                                         ('exp', 1.0)])
@pytest.mark.parametrize('ramp', [0.0, 0.3, 1.0])
def test_value_and_gradient_equal_a_loop_over_groups(dtype, group_dims, mode,
                                                     alpha, ramp):
    g = torch.Generator().manual_seed(0)
    params = {
        f'p{i}':
        nn.Parameter(
            torch.randn(shape, generator=g, dtype=torch.float64).to(dtype))
        for i, shape in enumerate(SHAPES)
    }
    params['head.predictor.weight'] = nn.Parameter(torch.ones(9, dtype=dtype))
    regulariser = GroupRegulariser(params.items(), LAM, alpha, mode,
                                   group_dims=group_dims)
    regulariser.set_ramp(ramp)
    tolerance = dict(rtol=1e-12, atol=1e-12) if dtype == torch.float64 else (
        dict(rtol=1e-5, atol=1e-6))
    for is_base in (True, False):
        expected = naive_reg(params, is_base, LAM, alpha, mode, group_dims,
                             ramp=ramp)
        grads = torch.autograd.grad(expected, list(params.values()),
                                    allow_unused=True)
        loss = regulariser.loss(is_base)
        torch.testing.assert_close(loss.detach(), expected.detach(),
                                   **tolerance)
        (3 * loss).backward()  # as a loss scaler would
        regulariser.add_gradients()
        for p, grad in zip(params.values(), grads):
            if grad is None:
                assert p.grad is None
            else:
                torch.testing.assert_close(p.grad, 3 * grad, **tolerance)
            p.grad = None


def test_the_value_is_taken_anew_at_intervals_and_the_gradient_always():
    p = nn.Parameter(torch.ones(4, dtype=torch.float64))
    regulariser = GroupRegulariser([('p', p)], lam=1.0, groups=1,
                                   value_interval=3)
    values = []
    for step in range(1, 8):
        p.data.fill_(step)
        p.grad = None
        loss = regulariser.loss(is_base=True)
        loss.backward()
        regulariser.add_gradients()
        values.append(float(loss) / 4)
        assert torch.equal(p.grad, torch.full_like(p, 2 * step))
    assert values == [1, 1, 1, 16, 16, 16, 49]


def test_twenty_channels_leave_the_remainder_to_the_last_group():
    p = nn.Parameter(torch.ones(20, dtype=torch.float64))
    regulariser = GroupRegulariser([('p', p)], lam=1.0, alpha=0.1)
    regulariser.set_ramp(1.0)
    regulariser.loss(False).backward()
    regulariser.add_gradients()
    groups = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6] + [7] * 6
    torch.testing.assert_close(
        p.grad,
        torch.tensor([2 * (1 - 0.1 * g) for g in groups], dtype=torch.float64))


# Through train_step ----------------------------------------------------------


def stub_runner(algorithm, wrapper, epochs=8, epoch_length=3):
    return SimpleNamespace(model=algorithm, optim_wrapper=wrapper, iter=0,
                           max_iters=epochs * epoch_length,
                           train_dataloader=[None] * epoch_length)


def naive_ramp(epoch, warmup, epochs):
    """Plain decay in the warm-up, then linear, complete at half."""
    if epoch < warmup:
        return 0.0
    if epoch >= epochs / 2:
        return 1.0
    return (epoch - warmup) / (epochs / 2 - warmup)


def check_training(hook, reg, iterations, wrap=OptimWrapper, clip_norm=None,
                   warmup=0, epochs=8, **options):
    """Train at chosen iterations, with the hook and with the loss term."""
    features = options.pop('features', None)
    algorithm = naive.small_algorithm(
        feature_distill=dict(outputs=features) if features else None,
        **options)
    named = naive.student_parameters(algorithm)
    ramp = {}
    trainer = naive.NaiveTrainer(
        named, 'byol', features=features, lr=0.05, clip_norm=clip_norm,
        reg=lambda params, is_base: naive_reg(params, is_base, **reg, **ramp),
        **options)
    optimizer = torch.optim.SGD(named.values(), lr=0.05, momentum=0.9)
    wrapper = wrap(optimizer) if clip_norm is None else wrap(
        optimizer, clip_grad=dict(max_norm=clip_norm))
    runner = stub_runner(algorithm, wrapper, epochs)
    hook.before_train(runner)
    algorithm.regulariser.value_interval = 1
    algorithm.plan = Plan.of([1.0, 0.5, 0.25])
    for iteration in iterations:
        runner.iter = iteration
        ramp['ramp'] = naive_ramp(iteration // 3, warmup, epochs)
        hook.before_train_iter(runner, 0)
        data, views = naive.batch(iteration)
        # What is logged are the norms before the iteration.
        logged = sum(
            float(naive_reg(trainer.params, is_base, **reg, **ramp))
            for is_base in (True, False, False))
        passes = trainer.step(views, [1.0, 0.5, 0.25])
        log = algorithm.train_step(data, wrapper)
        assert float(log['loss_reg']) == pytest.approx(logged, rel=1e-9)
        others = sum(
            sum(losses.values()) - losses['reg'] for _, losses, _ in passes)
        assert float(log['loss']) == pytest.approx(others + logged, rel=1e-8)
    for name, value in trainer.params.items():
        difference = (named[name].detach() - value).abs().max()
        assert difference < 1e-7, name


@pytest.mark.parametrize('update_mode', ['sequential', 'accumulate'])
@pytest.mark.parametrize('mode, alpha, group_dims', [('linear', 0.1, CNN),
                                                     ('exp', 0.8, CNN),
                                                     ('linear', 0.1, VIT)],
                         ids=['linear', 'exp', 'vit'])
def test_training_equals_a_loss_term(update_mode, mode, alpha, group_dims):
    """Across warm-up, ramp and the time after it."""
    reg = dict(lam=LAM, alpha=alpha, mode=mode, group_dims=group_dims)
    check_training(GroupRegHook(warmup_epochs=1, **reg), reg,
                   iterations=(2, 8, 15), warmup=1, update_mode=update_mode)


@pytest.mark.parametrize('update_mode', ['sequential', 'accumulate'])
def test_gradient_clipping_sees_the_term(update_mode):
    reg = dict(lam=LAM, alpha=0.1)
    check_training(GroupRegHook(**reg), reg, iterations=(10, 20),
                   clip_norm=0.3, update_mode=update_mode)


def test_teacher_and_feature_projections_are_not_decayed():
    reg = dict(lam=LAM, alpha=0.1)
    check_training(GroupRegHook(**reg), reg, iterations=(10, 20),
                   features=(1, 3))


def test_a_shared_head_is_decayed_in_the_distillation_passes():
    reg = dict(lam=LAM, alpha=0.1)
    check_training(GroupRegHook(**reg), reg, iterations=(20, ),
                   share_head=True)


class ScalingWrapper(OptimWrapper):
    """What `--amp` swaps in does to gradients, without its precision."""

    def backward(self, loss, **kwargs):
        super().backward(1024 * loss, **kwargs)

    def step(self, **kwargs):
        for group in self.optimizer.param_groups:
            for p in group['params']:
                if p.grad is not None:
                    p.grad.div_(1024)
        super().step(**kwargs)


@pytest.mark.parametrize('update_mode', ['sequential', 'accumulate'])
def test_the_term_survives_another_optim_wrapper(update_mode):
    reg = dict(lam=LAM, alpha=0.1)
    check_training(GroupRegHook(**reg), reg, iterations=(10, 20),
                   wrap=ScalingWrapper, clip_norm=0.5, update_mode=update_mode)


@pytest.mark.parametrize('warmup', [0, 3, 4, 6])
def test_the_ramp_of_each_epoch(warmup):
    """Plain decay during the warm-up, also where it passes half."""
    algorithm = naive.small_algorithm()
    hook = GroupRegHook(lam=1.0, alpha=0.1, warmup_epochs=warmup)
    runner = stub_runner(
        algorithm, OptimWrapper(torch.optim.SGD(algorithm.parameters(),
                                                lr=0.1)))
    hook.before_train(runner)
    params = naive.student_parameters(algorithm)
    params = {k: v.detach() for k, v in params.items()}
    for iteration in range(runner.max_iters):
        runner.iter = iteration
        hook.before_train_iter(runner, 0)
        ramp = naive_ramp(iteration // 3, warmup, epochs=8)
        assert algorithm.regulariser.loss(False).item() == pytest.approx(
            naive_reg(params, False, 1.0, 0.1, ramp=ramp).item())


def test_a_hook_can_serve_two_trainings():
    algorithm = naive.small_algorithm()
    hook = GroupRegHook(lam=1.0, alpha=0.1)
    runner = stub_runner(
        algorithm, OptimWrapper(torch.optim.SGD(algorithm.parameters(),
                                                lr=0.1)))
    runner.iter = runner.max_iters - 1
    values = []
    for _ in range(2):
        hook.before_train(runner)
        hook.before_train_iter(runner, 0)
        values.append(algorithm.regulariser.loss(False).item())
    assert values[0] == values[1]


def run(tmp_path, name, **changes):
    cfg = small_cfg(
        tmp_path / name, **{
            'train_cfg.max_epochs': 1, 'optim_wrapper.optimizer.lr': 0.05,
            **changes
        })
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def test_a_real_run_decays_by_the_hook(tmp_path):
    norms = []
    for lam in (0.0, 0.05):
        runner = run(
            tmp_path, f'{lam}', **{
                'default_hooks.sampler.widths': [1.0, 0.5],
                'default_hooks.group_reg.lam': lam
            })
        norms.append(runner.model.backbone.layer4[1].conv1.weight.norm())
    assert norms[1] < 0.97 * norms[0]


# Weight decay beside it ------------------------------------------------------


def optimizer_with_decay(algorithm, **groups):
    """A parameter group per first part of the name, with its own decay."""
    return OptimWrapper(
        torch.optim.SGD([
            dict(
                params=[
                    p for n, p in algorithm.named_parameters()
                    if n.split('.')[0] == part and p.requires_grad
                ], weight_decay=groups.get(part, 0.0))
            for part in ('backbone', 'neck', 'head', 'distill_head',
                         'feature_distiller')
        ], lr=0.1))


def test_weight_decay_on_the_same_parameters_is_refused():
    algorithm = naive.small_algorithm(feature_distill={})
    runner = stub_runner(algorithm, optimizer_with_decay(algorithm, neck=1e-4))
    with pytest.raises(
            ValueError, match=r'weight_decay=0\.0001 on 7 of its '
            r'parameters, such as neck\.fc0\.weight.*weight_decay=0'
            '.*clear_weight_decay=True'):
        GroupRegHook().before_train(runner)
    assert algorithm.regulariser is None


def test_weight_decay_on_other_parameters_is_allowed():
    algorithm = naive.small_algorithm(feature_distill={})
    runner = stub_runner(
        algorithm, optimizer_with_decay(algorithm, feature_distiller=1e-4))
    GroupRegHook().before_train(runner)
    groups = runner.optim_wrapper.optimizer.param_groups
    assert [group['weight_decay'] for group in groups] == [0, 0, 0, 0, 1e-4]


def test_weight_decay_is_cleared_on_request_and_that_is_said():
    lines = []
    logger = MMLogger.get_instance('group_reg', log_level='INFO')
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    algorithm = naive.small_algorithm()
    runner = stub_runner(
        algorithm, optimizer_with_decay(algorithm, backbone=1e-4, head=5e-4))
    GroupRegHook(clear_weight_decay=True).before_train(runner)
    assert all(group['weight_decay'] == 0
               for group in runner.optim_wrapper.optimizer.param_groups)
    said = [line for line in lines if 'GroupRegHook' in line]
    assert len(said) == 2
    assert 'weight_decay=0.0001' in said[0] and 'set to 0' in said[0]
    assert 'weight_decay=0.0005' in said[1]


def test_a_real_run_with_weight_decay_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match='GroupRegHook replaces weight decay'):
        run(tmp_path, 'refused',
            **{'optim_wrapper.optimizer.weight_decay': 1e-4})


@pytest.mark.parametrize('options, message', [
    (dict(alpha=0.15), r'alpha is in \[0, 0\.1429\].*8 groups.*got 0\.15'),
    (dict(alpha=-0.1), r'alpha is in.*got -0\.1'),
    (dict(alpha=float('nan')), r'alpha is in.*got nan'),
    (dict(mode='exp', alpha=1.1), r"alpha is in \[0, 1\] for mode='exp'"),
    (dict(lam=-1e-4), r'lam is not negative, got -0\.0001'),
    (dict(mode='cosine'), r"mode is one of \('linear', 'exp'\), got 'cosine'"),
    (dict(groups=0), 'groups is at least 1, got 0'),
], ids=str)
def test_arguments_that_cannot_work_are_refused(options, message):
    """When the hook is built, not when the first epoch is over."""
    with pytest.raises(ValueError, match=message):
        GroupRegHook(**options)
