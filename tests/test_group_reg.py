# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Group regularisation against a loss term in loops, and against AdamW."""
import logging
from types import SimpleNamespace

import naive
import pytest
import torch
from algorithms import sgd, small_algorithm, student_parameters, train_step
from mmengine.logging import MMLogger
from mmengine.optim import AmpOptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner
from small_run import small_cfg
from torch import nn

from us3l_mm.engine import GroupRegHook, MultiPassOptimWrapper
from us3l_mm.models import GroupDecay

CNN, VIT = {1: 0, 4: 0}, {2: 1}
# Large, so that a mistake in it cannot hide behind the other losses.
LAM = 0.02
WIDTHS = [1.0, 0.5, 0.25]


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
@pytest.mark.parametrize('group_dims', [CNN, VIT, {
    1: 0,
    2: 0,
    4: 1}], ids=['cnn', 'vit', 'other'])
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
        for i, shape in enumerate(SHAPES)}
    params['head.predictor.weight'] = nn.Parameter(torch.ones(9, dtype=dtype))
    decay = GroupDecay(params.items(), LAM, alpha, mode, group_dims=group_dims)
    decay.set_ramp(ramp)
    tolerance = dict(rtol=1e-12, atol=1e-12) if dtype == torch.float64 else (
        dict(rtol=1e-5, atol=1e-6))
    for is_base in (True, False):
        expected = naive_reg(params, is_base, LAM, alpha, mode, group_dims,
                             ramp=ramp)
        grads = torch.autograd.grad(expected, list(params.values()),
                                    allow_unused=True)
        role = 'base' if is_base else 'distil'
        torch.testing.assert_close(decay.value([role]), expected.detach(),
                                   **tolerance)
        for scale in (3.0, torch.tensor(3.0)):  # as a loss scaler would
            decay.add_gradients({role: 1}, scale)
            for p, grad in zip(params.values(), grads):
                if grad is None:
                    assert p.grad is None
                else:
                    torch.testing.assert_close(p.grad, 3 * grad, **tolerance)
                p.grad = None


def test_passes_add_up():
    """Also to a share of them, where batches are accumulated."""
    params = {
        'a': nn.Parameter(torch.randn(9, 3, 3, 3, dtype=torch.float64)),
        'head.predictor.b': nn.Parameter(torch.randn(5, dtype=torch.float64))}
    decay = GroupDecay(params.items(), LAM, 0.1)
    decay.set_ramp(0.7)
    expected = sum(
        naive_reg(params, is_base, LAM, 0.1, ramp=0.7)
        for is_base in (True, False, False))
    torch.testing.assert_close(decay.value(['base', 'distil', 'distil']),
                               expected.detach())
    grads = torch.autograd.grad(expected / 4, list(params.values()))
    for p in params.values():
        p.grad = torch.ones_like(p)
    decay.add_gradients(dict(base=1 / 4, distil=2 / 4), 1.0)
    for p, grad in zip(params.values(), grads):
        torch.testing.assert_close(p.grad, 1 + grad)


def test_the_value_is_taken_anew_at_intervals_and_the_gradient_always():
    p = nn.Parameter(torch.ones(4, dtype=torch.float64))
    decay = GroupDecay([('p', p)], lam=1.0, groups=1, value_interval=3)
    values = []
    for step in range(1, 8):
        p.data.fill_(step)
        p.grad = None
        values.append(float(decay.value(['base'])) / 4)
        decay.add_gradients(dict(base=1), 1.0)
        assert torch.equal(p.grad, torch.full_like(p, 2 * step))
    assert values == [1, 1, 1, 16, 16, 16, 49]


def test_twenty_channels_leave_the_remainder_to_the_last_group():
    p = nn.Parameter(torch.ones(20, dtype=torch.float64))
    decay = GroupDecay([('p', p)], lam=1.0, alpha=0.1)
    decay.set_ramp(1.0)
    decay.add_gradients(dict(distil=1), 1.0)
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


class ScaledWrapper(MultiPassOptimWrapper, AmpOptimWrapper):
    """MMEngine's loss scale on a CPU, without its precision."""


@pytest.fixture
def scaled(monkeypatch):
    """A wrapper with a loss scale of 1024."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available',
                        lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler',
                        lambda: torch.amp.GradScaler('cpu', 1024.0))
    return ScaledWrapper


def check_training(hook, reg, iterations, wrap=MultiPassOptimWrapper,
                   clip_norm=None, warmup=0, epochs=8, base_method='byol',
                   counts=1, **options):
    """Train at chosen iterations, with the hook and with the loss term."""
    features = options.pop('features', None)
    algorithm = small_algorithm(
        base_method,
        feature_distiller=dict(outputs=features) if features else None,
        share_predictor=options.get('share_head',
                                    False), update_mode=options.get(
                                        'update_mode', 'sequential'))
    named = student_parameters(algorithm)
    ramp = {}
    trainer = naive.NaiveTrainer(
        named, base_method, features=features, lr=0.05, clip_norm=clip_norm,
        reg=lambda params, is_base: naive_reg(params, is_base, **reg, **ramp),
        **options)
    wrapper = wrap(
        optimizer=torch.optim.SGD(named.values(), lr=0.05,
                                  momentum=0.9), accumulative_counts=counts,
        clip_grad=clip_norm and dict(max_norm=clip_norm))
    total = -(-len(iterations) // counts)
    wrapper.initialize_count_status(nn.Identity(), 0, len(iterations))
    runner = stub_runner(algorithm, wrapper, epochs)
    hook.before_train(runner)
    for update in range(total):
        group = iterations[counts * update:counts * (update + 1)]
        ramp['ramp'] = naive_ramp(group[0] // 3, warmup, epochs)
        # What is logged are the norms before the iteration.
        logged = sum(
            float(naive_reg(trainer.params, is_base, **reg, **ramp))
            for is_base in (True, False, False))
        data, views = zip(*map(naive.batch, group))
        found = trainer.update(views, WIDTHS) if counts > 1 else [
            trainer.step(views[0], WIDTHS)]
        for iteration, one, passes in zip(group, data, found):
            runner.iter = iteration
            hook.before_train_iter(runner, 0)
            log = train_step(algorithm, one, wrapper, WIDTHS)
            assert float(log['loss_reg']) == pytest.approx(logged, rel=1e-9)
            others = sum(
                sum(losses.values()) - losses['reg']
                for _, losses, _ in passes)
            assert float(log['loss']) == pytest.approx(others + logged,
                                                       rel=1e-8)
    for name, value in trainer.params.items():
        difference = (named[name].detach() - value).abs().max()
        assert difference < 1e-7, name
    for name, value in trainer.teacher.items() if algorithm.teacher else ():
        difference = algorithm.teacher.get_parameter(name) - value
        assert difference.abs().max() < 1e-7, name


@pytest.mark.parametrize('update_mode', ['sequential', 'accumulate'])
@pytest.mark.parametrize('mode, alpha, group_dims', [('linear', 0.1, CNN),
                                                     ('exp', 0.8, CNN),
                                                     ('linear', 0.1, VIT)],
                         ids=['linear', 'exp', 'vit'])
def test_training_equals_a_loss_term(update_mode, mode, alpha, group_dims):
    """Across warm-up, ramp and the time after it."""
    reg = dict(lam=LAM, alpha=alpha, mode=mode, group_dims=group_dims)
    check_training(GroupRegHook(warmup_epochs=1, value_interval=1, **reg), reg,
                   iterations=(2, 8, 15), warmup=1, update_mode=update_mode)


@pytest.mark.parametrize('update_mode', ['sequential', 'accumulate'])
def test_gradient_clipping_sees_the_term(update_mode):
    reg = dict(lam=LAM, alpha=0.1)
    check_training(GroupRegHook(value_interval=1, **reg), reg,
                   iterations=(10, 20), clip_norm=0.3, update_mode=update_mode)


def test_teacher_and_feature_projections_are_not_decayed():
    reg = dict(lam=LAM, alpha=0.1)
    check_training(GroupRegHook(value_interval=1, **reg), reg,
                   iterations=(10, 20), features=(0, 2))


def test_a_shared_head_is_decayed_in_the_distillation_passes():
    reg = dict(lam=LAM, alpha=0.1)
    check_training(GroupRegHook(value_interval=1, **reg), reg,
                   iterations=(20, ), share_head=True)


@pytest.mark.parametrize('update_mode', ['sequential', 'accumulate'])
def test_the_term_follows_the_loss_scale(scaled, update_mode):
    reg = dict(lam=LAM, alpha=0.1)
    check_training(GroupRegHook(value_interval=1,
                                **reg), reg, iterations=(10, 20), wrap=scaled,
                   clip_norm=0.5, update_mode=update_mode)


@pytest.mark.parametrize('wrap', ['plain', 'scaled'])
def test_batches_of_an_update_have_the_term_once(wrap, request):
    """Three batches in twos: the last update has one batch alone."""
    wrap = (MultiPassOptimWrapper
            if wrap == 'plain' else request.getfixturevalue('scaled'))
    reg = dict(lam=LAM, alpha=0.1)
    check_training(GroupRegHook(value_interval=1, **reg), reg,
                   iterations=(12, 13, 14), wrap=wrap, clip_norm=0.5,
                   update_mode='accumulate', counts=2)


@pytest.mark.parametrize('update_mode', ['sequential', 'accumulate'])
@pytest.mark.parametrize('base_method', sorted(naive.METHODS))
def test_every_base_method_has_the_term(base_method, update_mode):
    reg = dict(lam=LAM, alpha=0.1)
    check_training(GroupRegHook(value_interval=1,
                                **reg), reg, iterations=(10, ),
                   base_method=base_method, update_mode=update_mode)


@pytest.mark.parametrize('warmup', [0, 3, 4, 6])
def test_the_ramp_of_each_epoch(warmup):
    """Plain decay during the warm-up, also where it passes half."""
    algorithm = small_algorithm()
    hook = GroupRegHook(lam=1.0, alpha=0.1, warmup_epochs=warmup)
    runner = stub_runner(algorithm, sgd(algorithm))
    hook.before_train(runner)
    params = student_parameters(algorithm)
    params = {k: v.detach() for k, v in params.items()}
    for iteration in range(runner.max_iters):
        runner.iter = iteration
        hook.before_train_iter(runner, 0)
        ramp = naive_ramp(iteration // 3, warmup, epochs=8)
        assert runner.optim_wrapper.regulariser.value([
            'distil']).item() == pytest.approx(
                naive_reg(params, False, 1.0, 0.1, ramp=ramp).item())


def test_a_hook_can_serve_two_trainings():
    algorithm = small_algorithm()
    hook = GroupRegHook(lam=1.0, alpha=0.1)
    runner = stub_runner(algorithm, sgd(algorithm))
    runner.iter = runner.max_iters - 1
    values = []
    for _ in range(2):
        hook.before_train(runner)
        hook.before_train_iter(runner, 0)
        values.append(
            runner.optim_wrapper.regulariser.value(['distil']).item())
    assert values[0] == values[1]


def run(tmp_path, name, **changes):
    cfg = small_cfg(
        tmp_path / name, **{
            'train_cfg.max_epochs': 1,
            'optim_wrapper.optimizer.lr': 0.05,
            **changes})
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def test_a_real_run_decays_by_the_hook(tmp_path):
    norms = []
    for lam in (0.0, 0.05):
        runner = run(
            tmp_path, f'{lam}', **{
                'default_hooks.sampler.widths': [1.0, 0.5],
                'default_hooks.group_reg.lam': lam})
        norms.append(runner.model.backbone.layer2[1].conv1.weight.norm())
    assert norms[1] < 0.97 * norms[0]


# Decoupled from the gradient ------------------------------------------------


def trained(weight_decay, hook=None, iterations=3, lr=0.01):
    """The student's parameters after a few iterations of AdamW."""
    algorithm = small_algorithm('moco_v3')
    named = student_parameters(algorithm)
    optimizer = torch.optim.AdamW(
        [  # two groups of unequal learning rates
            dict(params=list(named.values())[:20], lr=3 * lr),
            dict(params=list(named.values())[20:])],
        lr=lr,
        weight_decay=weight_decay)
    wrapper = MultiPassOptimWrapper(optimizer=optimizer)
    runner = stub_runner(algorithm, wrapper, epochs=2)
    if hook is not None:
        hook.before_train(runner)
    for runner.iter in range(iterations):
        if hook is not None:
            hook.before_train_iter(runner, 0)
        log = train_step(algorithm,
                         naive.batch(runner.iter)[0], wrapper, [1.0, 0.5])
        assert 'loss_reg' not in log
    return {name: p.detach().clone() for name, p in named.items()}


def test_without_groups_it_is_the_weight_decay_of_adamw():
    expected = trained(weight_decay=0.4)
    hook = GroupRegHook(lam=0.2, alpha=0.0, decoupled=True)
    for name, value in trained(0.0, hook).items():
        # Rounds otherwise, and Adam divides by gradients that are tiny.
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize('mode, alpha', [('linear', 0.1), ('exp', 0.8)])
@pytest.mark.parametrize('group_dims', [None, VIT], ids=['cnn', 'vit'])
def test_a_step_shrinks_each_group_by_its_own_factor(mode, alpha, group_dims):
    shapes = [(20, ), (16, 4, 3, 3), (6, 24), (5, )]
    params = [
        torch.nn.Parameter(torch.randn(s, dtype=torch.float64))
        for s in shapes]
    model = torch.nn.ParameterList(params)
    optimizer = torch.optim.SGD(params, lr=0.5)
    hook = GroupRegHook(lam=0.01, alpha=alpha, mode=mode, decoupled=True,
                        group_dims=group_dims)
    runner = stub_runner(model, MultiPassOptimWrapper(optimizer=optimizer))
    runner.iter = runner.max_iters - 1  # the ramp is complete
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    before = [p.detach().clone() for p in params]
    for p in params[:3]:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, old in zip(params[:3], before):
        dim = (group_dims or {1: 0, 4: 0}).get(p.dim())
        for index in range(1 if dim is None else p.shape[dim]):
            size = 1 if dim is None else p.shape[dim] // 8
            g = 0 if dim is None else min(index // size, 7)
            lam = 0.01 * (1 - alpha * g if mode == 'linear' else alpha**g)
            part, was = (x if dim is None else x.select(dim, index)
                         for x in (p.data, old))
            torch.testing.assert_close(part, was * (1 - 0.5 * 2 * lam),
                                       rtol=1e-12, atol=0)
    # Not used in this step, so AdamW would leave it alone too.
    torch.testing.assert_close(params[3].data, before[3], rtol=0, atol=0)


def test_a_hook_that_serves_two_trainings_decays_once():
    p = torch.nn.Parameter(torch.ones(8))
    optimizer = torch.optim.SGD([p], lr=1.0)
    hook = GroupRegHook(lam=0.1, alpha=0.0, decoupled=True)
    runner = stub_runner(torch.nn.ParameterList([p]),
                         MultiPassOptimWrapper(optimizer=optimizer))
    for _ in range(2):
        hook.before_train(runner)
        hook.before_train_iter(runner, 0)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(p.data, torch.full((8, ), 0.8))


def test_weight_decay_beside_the_decoupled_one_is_refused():
    with pytest.raises(ValueError, match=r'weight_decay=0\.4 on \d+ of its'):
        trained(0.4, GroupRegHook(decoupled=True))


# Weight decay beside it ------------------------------------------------------


def optimizer_with_decay(algorithm, **groups):
    """A parameter group per first part of the name, with its own decay."""
    return MultiPassOptimWrapper(optimizer=torch.optim.SGD([
        dict(
            params=[
                p for n, p in algorithm.named_parameters()
                if n.split('.')[0] == part and p.requires_grad],
            weight_decay=groups.get(part, 0.0))
        for part in ('backbone', 'neck', 'head', 'distill_head',
                     'feature_distiller')], lr=0.1))


def test_weight_decay_on_the_same_parameters_is_refused():
    algorithm = small_algorithm(feature_distiller={})
    runner = stub_runner(algorithm, optimizer_with_decay(algorithm, neck=1e-4))
    with pytest.raises(
            ValueError, match=r'weight_decay=0\.0001 on 7 of its '
            r'parameters, such as neck\.fc0\.weight.*weight_decay=0'
            '.*clear_weight_decay=True'):
        GroupRegHook().before_train(runner)
    assert runner.optim_wrapper.regulariser is None


def test_weight_decay_on_other_parameters_is_allowed():
    algorithm = small_algorithm(feature_distiller={})
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
    algorithm = small_algorithm()
    runner = stub_runner(
        algorithm, optimizer_with_decay(algorithm, backbone=1e-4, head=5e-4))
    GroupRegHook(clear_weight_decay=True).before_train(runner)
    assert all(group['weight_decay'] == 0
               for group in runner.optim_wrapper.optimizer.param_groups)
    said = [line for line in lines if 'GroupRegHook' in line]
    assert len(said) == 2
    assert 'weight_decay=0.0001' in said[0] and 'set to 0' in said[0]
    assert 'weight_decay=0.0005' in said[1]


def test_no_lam_leaves_the_weight_decay_to_the_optimizer():
    algorithm = small_algorithm()
    runner = stub_runner(algorithm, optimizer_with_decay(algorithm, neck=1e-4))
    hook = GroupRegHook(lam=0)
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    log = train_step(algorithm, naive.batch()[0], runner.optim_wrapper)
    assert 'loss_reg' not in log
    groups = runner.optim_wrapper.optimizer.param_groups
    assert [group['weight_decay'] for group in groups][:2] == [0, 1e-4]


def test_a_real_run_with_weight_decay_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match='GroupRegHook replaces weight decay'):
        run(tmp_path, 'refused', **{
            'optim_wrapper.optimizer.weight_decay': 1e-4})


@pytest.mark.parametrize('options, message', [
    (dict(alpha=0.15), r'alpha is in \[0, 0\.1429\].*8 groups.*got 0\.15'),
    (dict(alpha=-0.1), r'alpha is in.*got -0\.1'),
    (dict(alpha=float('nan')), r'alpha is in.*got nan'),
    (dict(mode='exp', alpha=1.1), r"alpha is in \[0, 1\] for mode='exp'"),
    (dict(lam=-1e-4), r'lam is not negative, got -0\.0001'),
    (dict(mode='cosine'), r"mode is one of \('linear', 'exp'\), got 'cosine'"),
    (dict(groups=0), 'groups is at least 1, got 0'),
    (dict(value_interval=0), 'value_interval is at least 1, got 0'), ],
                         ids=str)
def test_arguments_that_cannot_work_are_refused(options, message):
    """When the hook is built, not when the first epoch is over."""
    with pytest.raises(ValueError, match=message):
        GroupRegHook(**options)
