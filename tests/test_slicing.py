# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A slice computes what the slimmable network computes at that width."""
import random

import pytest
import torch
from mmpretrain.models import ResNet, ResNet_CIFAR
from torch import nn

from us3l_mm.evaluation import calibrate
from us3l_mm.export import plain_arguments, slice_backbone, slice_network
from us3l_mm.models import (SlimmableProjector, SlimmableResNet,
                            SlimmableResNet_CIFAR, at_width)
from us3l_mm.models.layers import SlimmableLayer, SwitchableBatchNorm

EIGHTHS = [k / 8 for k in range(2, 9)]
# Everything a quarter of the real size, rounding included, so that the grid
# of plain widths is the same k/8.
SMALL = dict(base_channels=16, stem_channels=16, divisor=2)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(0))


def measured(network, widths):
    """``network`` with scales and statistics that a layer could not have by
    chance."""
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    calibrate(network, [torch.randn(4, 3, 32, 32)], widths)
    return network.eval()


def outputs(network):
    with torch.no_grad():
        return network(IMAGES)


def largest_gap(slimmable, width, plain):
    with at_width(slimmable, width):
        expected = outputs(slimmable)
    found = outputs(plain)
    assert [m.shape for m in found] == [m.shape for m in expected]
    return max((a - b).abs().max() / b.abs().max().clamp(min=1)
               for a, b in zip(found, expected))


@pytest.mark.parametrize('depth', [18, 34, 50])
def test_a_slice_computes_what_its_width_does(depth):
    rng = random.Random(depth)
    widths = EIGHTHS + [rng.uniform(0.25, 1) for _ in range(18)]
    network = measured(
        SlimmableResNet(depth, out_indices=(0, 1, 2, 3), **SMALL), widths)
    for width in widths:
        gap = largest_gap(network, width, slice_network(network, width))
        assert gap == 0 if width in EIGHTHS else gap <= 1e-5, (width, gap)


@pytest.mark.parametrize('ours, stock',
                         [(SlimmableResNet, ResNet),
                          (SlimmableResNet_CIFAR, ResNet_CIFAR)])
def test_eighths_load_strictly_into_the_stock_network(ours, stock):
    network = measured(ours(18), EIGHTHS)
    for width in EIGHTHS:
        plain = stock(18, base_channels=int(64 * width),
                      stem_channels=int(64 * width))
        plain.load_state_dict(slice_backbone(network, width), strict=True)
        plain.eval()
        assert largest_gap(network, width, plain) == 0
        assert plain_arguments(network, width)['base_channels'] == 64 * width


def test_a_slice_loads_strictly_into_mmdetection():
    mmdet = pytest.importorskip('mmdet.models',
                                reason='MMDetection is not installed',
                                exc_type=ImportError)
    network = measured(SlimmableResNet(50, out_indices=(0, 1, 2, 3)), [0.375])
    detector = mmdet.ResNet(50, base_channels=24, stem_channels=24)
    detector.load_state_dict(slice_backbone(network, 0.375), strict=True)
    detector.eval()
    assert largest_gap(network, 0.375, detector) == 0


@pytest.mark.parametrize('width', [0.3, 0.5, 0.7, 0.97])
def test_any_width_loads_strictly_into_a_network_of_that_width(width):
    network = measured(SlimmableResNet(50, **SMALL), [width])
    narrow = SlimmableResNet(50, width=width, **SMALL)
    narrow.load_state_dict(slice_backbone(network, width), strict=True)
    narrow.eval()
    assert largest_gap(network, width, narrow) <= 1e-5
    assert narrow.out_channels == network.feature_channels(width)
    assert narrow.feat_dim == narrow.out_channels[-1]


def test_a_slice_shares_nothing_and_leaves_the_network_as_it_was():
    network = measured(SlimmableResNet(18, **SMALL), [0.5, 1.0])
    before = {k: v.clone() for k, v in network.state_dict().items()}
    plain = slice_network(network, 0.5)
    assert not any(isinstance(m, SlimmableLayer) for m in plain.modules())
    assert not {p.data_ptr() for p in plain.parameters()} & {
        p.data_ptr() for p in network.parameters()}
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


SWITCHABLE = dict(type='SwitchableBN', widths=[1.0, 0.5, 0.25])


@pytest.fixture
def switchable():
    """Private norms of three widths, all of them random."""
    torch.manual_seed(0)
    network = SlimmableResNet(18, **SMALL, norm_cfg=SWITCHABLE)
    for value in network.state_dict().values():
        if value.ndim == 1:
            nn.init.uniform_(value, 0.5, 1.5)
        elif value.ndim == 0:
            value.fill_(3)  # batches that were tracked
    return network.eval()


def numbered(network):
    """Its state dict with the keys that older files have."""
    keys = {'': 'norms.0.', 'w0500000.': 'norms.1.', 'w0250000.': 'norms.2.'}
    norms = [
        name for name, module in network.named_modules()
        if isinstance(module, SwitchableBatchNorm)]
    state = {}
    for key, value in network.state_dict().items():
        for norm in norms:
            if key.startswith(f'{norm}.'):
                child, _, leaf = key[len(norm) + 1:].rpartition('.')
                key = f'{norm}.{keys[child + "." if child else ""]}{leaf}'
        state[key] = value
    assert 'bn1.norms.2.running_var' in state and 'bn1.weight' not in state
    return state


@pytest.mark.parametrize('width', SWITCHABLE['widths'])
@pytest.mark.parametrize('keys', ['subnets', 'numbers'])
def test_a_switchable_norm_gives_the_slice_its_private_one(
        switchable, width, keys):
    sliced = slice_network(switchable, width)
    assert largest_gap(switchable, width, sliced) == 0
    state = (numbered(switchable)
             if keys == 'numbers' else switchable.state_dict())
    again = SlimmableResNet(18, **SMALL, norm_cfg=SWITCHABLE)
    again.load_state_dict(dict(state))
    assert largest_gap(again.eval(), width, sliced) == 0
    # A network of this width picks its norm from the file of all of them,
    # and takes a sliced file as it is.
    for weights in (state, sliced.state_dict()):
        own = SlimmableResNet(18, **SMALL, width=width, norm_cfg=SWITCHABLE)
        own.load_state_dict(dict(weights))
        assert largest_gap(switchable, width, own.eval()) == 0


def test_private_norms_of_another_list_are_refused(switchable):
    with pytest.raises(ValueError, match=r'built for \[w1.00, w0.50, w0.25\]'):
        slice_network(switchable, 0.75)
    other = dict(SWITCHABLE, widths=[1.0, 0.75, 0.5])
    lists = (r'batch norms for \[w1.00, w0.50, w0.25\].*built for '
             r'\[w1.00, w0.75, w0.50\]')
    for arguments in (dict(), dict(width=0.5)):
        network = SlimmableResNet(18, **SMALL, norm_cfg=other, **arguments)
        with pytest.raises(ValueError, match=lists):
            network.load_state_dict(switchable.state_dict())
    two = SlimmableResNet(18, **SMALL, norm_cfg=dict(SWITCHABLE, widths=[
        1.0, 0.5]))
    with pytest.raises(ValueError, match=r'3 batch norms.*2.*w1.00, w0.50'):
        two.load_state_dict(numbered(switchable))


def test_full_norms_are_no_substitute_for_private_ones():
    """Weights are sliced from a plain network, statistics are not."""
    plain = SlimmableResNet(18, **SMALL)
    measured(plain, [1.0])
    network = SlimmableResNet(18, **SMALL, width=0.5, norm_cfg=SWITCHABLE)
    with pytest.raises(
            ValueError, match='no batch-norm statistics for w0.50; '
            'measured are: w1.00'):
        network.load_state_dict(plain.state_dict())


def test_a_projector_is_sliced_with_its_backbone():
    network = nn.Sequential(
        SlimmableResNet(18, **SMALL),
        SlimmableProjector(128, 32, 16, num_layers=2, with_avg_pool=True,
                           divisor=SMALL['divisor']))
    measured(network, [0.3])
    assert largest_gap(network, 0.3, slice_network(network, 0.3)) <= 1e-5


def test_what_cannot_be_sliced_is_refused():
    network = SlimmableResNet(18, **SMALL)
    with pytest.raises(
            ValueError, match='no batch-norm statistics for '
            'w0.50; measured are: none'):
        slice_network(network, 0.5)
    with pytest.raises(ValueError, match=r'outside the range \[0.25, 1\]'):
        slice_network(network, 0.2)
    plain = slice_network(network, 0.5, without_statistics=True)
    with pytest.raises(ValueError, match='an ordinary network already'):
        slice_network(plain, 0.5)


@pytest.mark.parametrize('base, divisor, width, expected',
                         [(64, 8, 0.5, 32), (64, 8, 0.3, None),
                          (64, 8, 0.28125, None), (32, 8, 0.5, 16),
                          (32, 8, 0.375, None)])
def test_a_stock_network_is_named_exactly_where_there_is_one(
        base, divisor, width, expected):
    network = SlimmableResNet(18, base_channels=base, stem_channels=base,
                              divisor=divisor)
    arguments = plain_arguments(network, width)
    assert (arguments and arguments['base_channels']) == expected


def test_a_network_of_three_stages_is_a_stock_resnet_too():
    network = SlimmableResNet_CIFAR(
        depth=18, base_channels=16, stem_channels=16, num_stages=3,
        strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2, ))
    arguments = plain_arguments(network, 0.5)
    assert arguments['num_stages'] == 3 and arguments['out_indices'] == (2, )
    stock = ResNet_CIFAR(**arguments)
    plain = slice_network(network, 0.5, without_statistics=True)
    stock.load_state_dict(plain.state_dict(), strict=True)
