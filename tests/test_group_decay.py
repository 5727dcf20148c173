# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Decoupled group regularisation against AdamW and loops over groups."""
import naive
import pytest
import torch
from mmengine.optim import OptimWrapper
from test_group_reg import stub_runner

from us3l_mm.engine import GroupRegHook
from us3l_mm.models import Plan

VIT = {2: 1}


def trained(weight_decay, hook=None, iterations=3, lr=0.01):
    """The student's parameters after a few iterations of AdamW."""
    algorithm = naive.small_algorithm('moco_v3')
    named = naive.student_parameters(algorithm)
    optimizer = torch.optim.AdamW(
        [  # two groups of unequal learning rates
            dict(params=list(named.values())[:20], lr=3 * lr),
            dict(params=list(named.values())[20:])
        ],
        lr=lr,
        weight_decay=weight_decay)
    wrapper = OptimWrapper(optimizer)
    runner = stub_runner(algorithm, wrapper, epochs=2)
    if hook is not None:
        hook.before_train(runner)
    algorithm.plan = Plan.of([1.0, 0.5])
    for runner.iter in range(iterations):
        if hook is not None:
            hook.before_train_iter(runner, 0)
        log = algorithm.train_step(naive.batch(runner.iter)[0], wrapper)
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
        torch.nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in shapes
    ]
    model = torch.nn.ParameterList(params)
    optimizer = torch.optim.SGD(params, lr=0.5)
    hook = GroupRegHook(lam=0.01, alpha=alpha, mode=mode, decoupled=True,
                        group_dims=group_dims)
    runner = stub_runner(model, OptimWrapper(optimizer))
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
    runner = stub_runner(torch.nn.ParameterList([p]), OptimWrapper(optimizer))
    for _ in range(2):
        hook.before_train(runner)
        hook.before_train_iter(runner, 0)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(p.data, torch.full((8, ), 0.8))


def test_weight_decay_beside_it_is_refused():
    with pytest.raises(ValueError, match=r'weight_decay=0\.4 on \d+ of its'):
        trained(0.4, GroupRegHook(decoupled=True))
