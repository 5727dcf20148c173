# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Norms and losses over several processes, against the joint batch."""
import pytest
import torch
from processes import run_processes

from us3l_mm.models import (InfoNCELoss, MoCoV3Loss, SlimmableBatchNorm1d,
                            SlimmableBatchNorm2d, SwitchableBatchNorm1d,
                            SwitchableBatchNorm2d, Subnet, at_width)
from us3l_mm.models.layers import set_sync

pytestmark = pytest.mark.ddp
IMAGES = (3, 5)  # of each process
NORMS = [(kind, width, dtype)
         for kind in (SlimmableBatchNorm1d, SlimmableBatchNorm2d,
                      SwitchableBatchNorm1d, SwitchableBatchNorm2d)
         for width in (1.0, 0.5, 0.25)
         for dtype in (torch.float64, torch.bfloat16)]
LOSSES = [(kind, gather) for kind in (InfoNCELoss, MoCoV3Loss)
          for gather in (True, False)]


def norm_of(kind, dtype):
    torch.manual_seed(0)
    private = kind in (SwitchableBatchNorm1d, SwitchableBatchNorm2d)
    norm = kind(24, **dict(subnets=[1.0, 0.5, 0.25]) if private else {})
    for p in norm.parameters():
        torch.nn.init.normal_(p)
    return norm.double() if dtype == torch.float64 else norm


def batch_of(kind, width, dtype):
    """The joint batch, (8, c, ...), and the gradient of its output."""
    torch.manual_seed(1)
    c = {1.0: 24, 0.5: 16, 0.25: 8}[width]
    rest = (4, 4) if kind.__name__.endswith('2d') else ()
    x, grad = (torch.randn(sum(IMAGES), c, *rest, dtype=torch.float64)
               for _ in range(2))
    return (3 * x + 1).to(dtype), grad.to(dtype)


def run_norm(case, x, grad, sync):
    kind, width, dtype = case
    norm = norm_of(kind, dtype)
    set_sync(torch.nn.Sequential(norm), sync)
    x = x.clone().requires_grad_()
    with at_width(norm, width):
        y = norm(x)
        y.backward(grad)
    key = Subnet(width).key
    own = norm._modules.get(key, norm)  # a private one, or the shared one
    assert own.num_batches_tracked == (norm.subnets != ())
    return dict(y=y.detach(), x=x.grad, weight=own.weight.grad,
                bias=own.bias.grad, mean=own.running_mean, var=own.running_var)


def embeddings():
    torch.manual_seed(2)
    return [torch.randn(8, 6, dtype=torch.float64) for _ in range(2)]


def run_loss(case, pred, target):
    kind, gather = case
    pred = pred.clone().requires_grad_()
    loss = kind(gather=gather)(pred, target)
    loss.backward()
    return loss.item(), pred.grad


def worker(rank, folder):
    start = sum(IMAGES[:rank])
    own = slice(start, start + IMAGES[rank])
    norms = []
    for case in NORMS:
        x, grad = batch_of(*case)
        norms.append(run_norm(case, x[own], grad[own], sync=True))
    half = slice(4 * rank, 4 * rank + 4)
    losses = [
        run_loss(case, *(e[half] for e in embeddings())) for case in LOSSES]
    torch.save((norms, losses), f'{folder}/{rank}.pth')


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    run_processes(worker, 2, folder)
    return [torch.load(folder / f'{rank}.pth') for rank in range(2)]


@pytest.mark.parametrize(
    'case', NORMS, ids=lambda c: '-'.join([
        c[0].__name__.replace('BatchNorm', ''),
        str(c[1]),
        str(c[2])[6:]]))
def test_a_norm_of_uneven_batches_equals_the_joint_one(ranks, case):
    first, second = (norms[NORMS.index(case)] for norms, _ in ranks)
    joint = run_norm(case, *batch_of(*case), sync=False)
    exact = case[2] == torch.float64
    # One rounding of an output of about 3; gradients pass two roundings.
    tolerance = dict(rtol=0, atol=1e-12 if exact else 2e-2)
    for name in ('y', 'x'):
        assert first[name].dtype == case[2]
        torch.testing.assert_close(torch.cat([first[name], second[name]]),
                                   joint[name], **tolerance)
    for name in ('mean', 'var'):  # the same on all processes
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
        torch.testing.assert_close(first[name], joint[name], rtol=0,
                                   atol=1e-12 if exact else 1e-2)
        assert case[0].__name__.startswith('Slimmable') or (
            joint[name] - float(name == 'var')).abs().min() > 1e-4
    for name in ('weight', 'bias'):  # added up over processes
        c = batch_of(*case)[0].shape[1]
        assert joint[name][:c].abs().min() > 0 and not joint[name][c:].any()
        torch.testing.assert_close(first[name] + second[name], joint[name],
                                   rtol=0 if exact else 1e-2,
                                   atol=1e-12 if exact else 5e-2)


@pytest.mark.parametrize(
    'case', LOSSES, ids=lambda c:
    (f'{c[0].__name__}-{"all" if c[1] else "own"}'))
def test_gathered_losses_have_the_gradient_of_the_joint_batch(ranks, case):
    (loss1, grad1), (loss2, grad2) = (losses[LOSSES.index(case)]
                                      for _, losses in ranks)
    if not case[1]:  # each by itself
        for (loss, grad), half in (((loss1, grad1), slice(0,
                                                          4)), ((loss2, grad2),
                                                                slice(4, 8))):
            alone = run_loss(case, *(e[half] for e in embeddings()))
            assert loss == pytest.approx(alone[0], abs=1e-12)
            torch.testing.assert_close(grad, alone[1])
        return
    loss, grad = run_loss(case, *embeddings())
    assert (loss1 + loss2) / 2 == pytest.approx(loss, abs=1e-12)
    # Data parallel training averages: half of each is what takes effect.
    torch.testing.assert_close(
        torch.cat([grad1, grad2]) / 2, grad, rtol=0, atol=1e-12)
