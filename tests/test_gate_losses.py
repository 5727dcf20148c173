# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The losses of dense + gated SSL by themselves."""
import math

import naive
import pytest
import torch
from gated_networks import model_cfg
from mmpretrain.models import CosineSimilarityLoss
from naive_gated import LOSSES

from us3l_mm.engine.wrappers.multi_pass_optim_wrapper import \
    multi_pass_amp_optim_wrapper
from us3l_mm.models import (BarlowTwinsLoss, ComputeBudget, InfoNCELoss,
                            PairHead, Plan, VICRegLoss)
from us3l_mm.models.layers import GatedCompute, Gating
from us3l_mm.models.losses.compute_budget import (density_bounds,
                                                  density_penalty)
from us3l_mm.registry import MODELS

OURS = dict(vicreg=VICRegLoss(), barlow_twins=BarlowTwinsLoss(),
            simclr=InfoNCELoss(0.2, detach_target=False))


def embeddings(images, features):
    draw = torch.Generator().manual_seed(0)
    return [
        torch.randn(images, features, generator=draw,
                    dtype=torch.float64).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('shape', [(4, 9), (9, 4), (5, 5)], ids=str)
def test_losses_and_both_gradients_equal_the_definition(name, shape):
    z = embeddings(*shape)
    found, expected = OURS[name](*z), LOSSES[name](*z)
    torch.testing.assert_close(found, expected)
    for own, other in zip(torch.autograd.grad(found, z),
                          torch.autograd.grad(expected, z)):
        torch.testing.assert_close(own, other)
        assert own.abs().max() > 0


def test_terms_of_vicreg_are_weighted():
    z = embeddings(6, 3)
    parts = [
        float(VICRegLoss(*weights)(*z))
        for weights in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert parts[0] == pytest.approx(float(((z[0] - z[1])**2).mean()))
    assert float(VICRegLoss()(*z)) == pytest.approx(25 * parts[0] +
                                                    25 * parts[1] + parts[2])
    # Without the invariance, a view does not see the other one.
    alone = torch.autograd.grad(VICRegLoss(invariance=0.0)(*z), z[0])[0]
    other = [z[0], 2 * z[1].detach()]
    same = torch.autograd.grad(VICRegLoss(invariance=0.0)(*other), z[0])[0]
    torch.testing.assert_close(alone, same)


@pytest.mark.parametrize('name', OURS)
def test_losses_are_in_single_precision_under_autocast(name):
    z = [300 * x.detach().half() for x in embeddings(32, 64)]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = OURS[name](*z)
    expected = OURS[name](*(x.double() for x in z))
    assert found.dtype == torch.float32 and found.isfinite()
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_a_pair_head_with_a_predictor_is_that_of_simsiam():
    z = embeddings(4, 12)
    head = PairHead(loss=dict(type='mmpretrain.CosineSimilarityLoss'),
                    predictor=model_cfg('simsiam')['head']['predictor'])
    p, q = (head.double().predictor((x, ))[0] for x in z)
    loss = CosineSimilarityLoss()
    expected = (loss(p, z[1].detach()) + loss(q, z[0].detach())) / 2
    torch.testing.assert_close(head.loss(*z), expected)
    assert float(expected) == pytest.approx(
        float(naive.cosine(p, z[1]) + naive.cosine(q, z[0])) / 2)
    assert torch.autograd.grad(head.loss(*z), z[1])[0].abs().max() > 0


# The budget ------------------------------------------------------------------


def one_gate(density, channels=10):
    """Half of the cost is fixed but for 0.1, the rest linear."""
    compute = GatedCompute(
        total=1000, fixed=100, names=('gate', ), channels=torch.tensor([
            float(channels)]).double(), linear=torch.tensor([
                900.0 / channels]).double(), pairs=torch.zeros(1, 1).double())
    on = (torch.arange(channels) < density * channels).double()
    return [Gating(on.expand(4, channels), torch.zeros(4, channels))], compute


@pytest.mark.parametrize('target, density, loss', [(0.55, 0.5, 0.0),
                                                   (0.45, 0.5, 0.05),
                                                   (0.65, 0.5, 0.05),
                                                   (0.1 + 1e-9, 0, 0),
                                                   (1.0, 1.0, 0.0)])
def test_the_loss_of_a_budget(target, density, loss):
    gatings, compute = one_gate(density)
    losses, log = ComputeBudget(target)(gatings, compute, progress=0.5)
    assert float(losses['loss_budget']) == pytest.approx(loss, abs=1e-12)
    assert float(log['ratio']) == pytest.approx(0.1 + 0.9 * density)
    assert float(log['density_gate']) == pytest.approx(density)
    assert log['target'] == target


def test_a_ratio_of_60_per_cent_for_50_costs_a_twentieth():
    gatings, compute = one_gate(5 / 9, channels=9)
    losses, _ = ComputeBudget(0.5)(gatings, compute, 0.0)
    assert float(losses['loss_budget']) == pytest.approx(0.05)


def test_bounds_of_densities():
    """At p = 1 both are s; they open as p falls."""
    assert density_bounds(0.5, 1.0) == (0.5, 0.5)
    assert density_bounds(0.5, 0.0) == (0.0, 1.0)
    assert density_bounds(0.3, 0.5) == pytest.approx((0.15, 0.65))
    for values, p, loss in (([0.5], 1.0, 0.0), ([0.7], 1.0, 0.04), ([
            0.3], 1.0, 0.04), ([0.7, 0.5], 1.0, 0.02), ([0.0, 1.0], 0.0, 0.0)):
        found = density_penalty(
            torch.tensor(values).double(), *density_bounds(0.5, p))
        assert float(found) == pytest.approx(loss), (values, p)


@pytest.mark.parametrize('bound, centre', [('sqrt', math.sqrt(0.3)),
                                           ('linear', 0.2 / 0.9)])
def test_the_density_between_the_bounds(bound, centre):
    gatings, compute = one_gate(0.5)
    budget = ComputeBudget(0.3, bound=bound, bound_weight=2.0, anneal=3.0)
    losses, log = budget(gatings, compute, 0.25)
    p = math.exp(-0.75)
    assert log['bound_low'] == pytest.approx(p * centre)
    assert log['bound_high'] == pytest.approx(1 - p * (1 - centre))
    out = max(0.0, 0.5 - log['bound_high'], log['bound_low'] - 0.5)
    assert float(losses['loss_bound']) == pytest.approx(2 * out**2)
    without, log = ComputeBudget(0.3, bound=None)(gatings, compute, 0.25)
    assert [*without] == ['loss_budget'] and 'bound_low' not in log


def test_the_expected_compute_has_the_probabilities():
    _, compute = one_gate(0.5)
    logits = torch.full((4, 10), math.log(3)).double()  # on in 3 of 4
    gatings = [Gating(torch.zeros(4, 10), logits)]
    _, log = ComputeBudget(0.3, expected=True)(gatings, compute, 0.0)
    assert float(log['ratio']) == pytest.approx(0.1 + 0.9 * 0.75)
    assert float(log['density_gate']) == pytest.approx(0.75)


def test_a_step_in_mixed_precision():
    torch.manual_seed(0)
    algorithm = MODELS.build(model_cfg()).train()
    before = {k: v.clone() for k, v in algorithm.named_parameters()}
    wrapper = multi_pass_amp_optim_wrapper(
        optimizer=torch.optim.SGD(algorithm.parameters(), 0.1))
    data, _ = naive.batch(0, images=8)
    log = algorithm.train_step(dict(data, plan=Plan.fixed([1.0], 0.1)),
                               wrapper)
    assert int(log['skipped']) == 0 and math.isfinite(float(log['loss']))
    assert log['loss'].dtype == torch.float32
    for name, value in algorithm.named_parameters():
        assert not torch.equal(value, before[name]), name
