# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""LARS against its definition, MMPretrain's, and without waiting."""
import pytest
import torch
from fake_device import DEVICE, transfers
from mmengine.optim import build_optim_wrapper
from mmpretrain.engine import optimizers
from torch import nn

from us3l_mm.engine import LARS

SHAPES = [(6, 4, 3, 3), (5, 6), (5, ), (7, ), (4, 2)]
StockLARS = optimizers.LARS
OPTIONS = dict(momentum=0.9, weight_decay=0.1, eta=0.02)


def parameters(dtype=torch.float64):
    """Large, small and zero ones; the last one gets no gradient."""
    draw = torch.Generator().manual_seed(0)
    scales = (1.0, 100.0, 1.0, 0.0, 1.0)
    return [
        nn.Parameter(
            scale *
            torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype))
        for shape, scale in zip(SHAPES, scales)]


def give_gradients(params, iteration):
    draw = torch.Generator().manual_seed(1 + iteration)
    for i, p in enumerate(params[:-1]):
        p.grad = torch.randn(p.shape, generator=draw,
                             dtype=torch.float64).to(p.dtype)
        if i == 1 and iteration == 1:
            p.grad.zero_()


def naive(params, rates, clip, exclude_flat, momentum, weight_decay, eta):
    """Each parameter by itself, in numbers."""
    params = [p.detach().clone() for p in params]
    velocity = [torch.zeros_like(p) for p in params]
    for iteration, lr in enumerate(rates):
        leaves = [nn.Parameter(p) for p in params]
        give_gradients(leaves, iteration)
        for p, leaf, v in zip(params, leaves, velocity):
            if leaf.grad is None:
                continue
            factor, decay = 1.0, weight_decay
            size = (p**2).sum().sqrt().item()
            slope = (leaf.grad**2).sum().sqrt().item()
            if exclude_flat and len(p.shape) == 1:
                decay = 0.0
            elif size > 0 and slope > 0:
                factor = eta * size / (slope + decay * size + 1e-8)
                if clip:
                    factor = min(factor / lr, 1.0)
            v.copy_(momentum * v + factor * (leaf.grad + decay * p))
            p -= lr * v
    return params


def trained(kind, rates, dtype=torch.float64, **options):
    params = parameters(dtype)
    optimizer = kind(params, lr=rates[0], **options)
    for iteration, lr in enumerate(rates):
        optimizer.param_groups[0]['lr'] = lr
        give_gradients(params, iteration)
        optimizer.step()
    return params


@pytest.mark.parametrize('exclude_flat', [False, True])
@pytest.mark.parametrize('clip', [False, True])
def test_four_steps_equal_the_definition(clip, exclude_flat):
    rates = [0.6, 0.5, 0.3, 0.01]
    options = dict(OPTIONS, clip=clip, exclude_flat=exclude_flat)
    found = trained(LARS, rates, **options)
    expected = naive(parameters(), rates, **options)
    for p, other, first in zip(found, expected, parameters()):
        torch.testing.assert_close(p.data, other, rtol=1e-12, atol=1e-14)
        assert (p.grad is None) == torch.equal(p, first)


def test_the_rate_of_a_layer_is_the_limit_of_the_learning_rate():
    """A factor of 1 is plain SGD: the large matrix is clipped, not others."""
    sgd, clipped, free = (trained(*args) for args in (
        (torch.optim.SGD, [0.1]),
        (lambda p, **kwargs: LARS(p, clip=True, eta=0.02, **kwargs),
         [0.1]), (lambda p, **kwargs: LARS(p, eta=0.02, **kwargs), [0.1])))
    assert torch.equal(sgd[1], clipped[1]) and not torch.equal(sgd[1], free[1])
    assert not torch.equal(sgd[0], clipped[0])


@pytest.mark.parametrize('options', [
    OPTIONS,
    dict(eta=1e-3),
    dict(momentum=0.9, weight_decay=1e-6, eta=1e-3)], ids=str)
def test_at_one_rate_it_is_mmpretrains(options):
    ours, theirs = (trained(kind, [0.6] * 4, **options)
                    for kind in (LARS, StockLARS))
    for p, other in zip(ours, theirs):
        torch.testing.assert_close(p, other, rtol=1e-12, atol=1e-14)


def test_at_another_rate_it_has_the_momentum_of_sgd():
    """MMPretrain's goes on with updates of the rate that was."""
    rates = [0.6, 0.0]
    ours, theirs = (trained(kind, rates, **OPTIONS)
                    for kind in (LARS, StockLARS))
    still = trained(LARS, rates[:1], **OPTIONS)
    assert all(map(torch.equal, ours, still))
    assert not torch.equal(theirs[0], still[0])


def test_single_precision_and_resume():
    whole = trained(LARS, [0.5] * 3, torch.float32, **OPTIONS)
    for p, other in zip(
            whole, naive(parameters(), [0.5] * 3, False, False, **OPTIONS)):
        torch.testing.assert_close(p.double(), other, rtol=1e-5, atol=1e-5)
    params = parameters(torch.float32)
    states = {}
    for iteration in range(3):  # a new optimizer in each step
        optimizer = LARS(params, lr=0.5, **OPTIONS)
        if states:
            optimizer.load_state_dict(states)
        give_gradients(params, iteration)
        optimizer.step()
        states = optimizer.state_dict()
    assert all(map(torch.equal, params, whole))


def test_a_config_builds_it_with_options_per_parameter():
    model = nn.Sequential()
    model.add_module('conv', nn.Conv2d(2, 3, 1))
    model.add_module('gate', nn.Linear(3, 2, bias=False))
    wrapper = build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='us3l_mm.LARS', lr=0.5, weight_decay=0.1,
                           clip=True, exclude_flat=True),
            paramwise_cfg=dict(custom_keys={'gate': dict(decay_mult=0.0)})))
    assert isinstance(wrapper.optimizer, LARS)
    decays = {
        name: group['weight_decay'] for (name, _), group in zip(
            model.named_parameters(), wrapper.optimizer.param_groups)}
    assert decays == {'conv.weight': 0.1, 'conv.bias': 0.1, 'gate.weight': 0.0}


def test_the_loss_of_a_closure_is_returned():
    p = nn.Parameter(torch.ones(2, 2))

    def closure():
        p.grad = torch.ones(2, 2)
        return (2 * p).sum()

    loss = LARS([p], lr=0.1).step(closure)
    assert float(loss.detach()) == 8 and loss.requires_grad and (p != 1).all()


@pytest.mark.parametrize('options, message', [
    (dict(lr=-1.0), 'lr is at least 0, got -1.0'),
    (dict(lr=0.1, eta=float('nan')), 'eta is at least 0, got nan'),
    (dict(lr=0.1, weight_decay=-1), 'weight_decay is at least 0, got -1')],
                         ids=str)
def test_mistakes_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        LARS(parameters(), **options)
    with pytest.raises(ValueError, match='optimizer.exclude_flat=True'):
        LARS([dict(params=parameters(), lars_exclude=True)], lr=0.1)


@pytest.mark.parametrize('kind, options, waits',
                         [(LARS, {}, False),
                          (LARS, dict(clip=True, exclude_flat=True), False),
                          (StockLARS, {}, True)], ids=str)
def test_nothing_waits_for_the_device(kind, options, waits):
    """MMPretrain's reads two norms of each parameter."""
    params = [
        nn.Parameter(torch.ones(shape, device=DEVICE)) for shape in SHAPES]
    optimizer = kind(params, lr=0.1, **OPTIONS, **options)
    for p in params:
        p.grad = torch.ones_like(p)
    assert bool(transfers(optimizer.step)) is waits
