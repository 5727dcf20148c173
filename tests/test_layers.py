# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Slimmable layers against slicing by hand, and the life of statistics."""
import copy
import io

import pytest
import torch
import torch.nn.functional as F
from mmengine.runner.checkpoint import load_state_dict
from test_width import naive_divisible
from torch import nn

from us3l_mm.models.layers import (SlimmableBatchNorm1d, SlimmableBatchNorm2d,
                                   SlimmableConv2d, SlimmableLinear,
                                   SwitchableBatchNorm1d,
                                   SwitchableBatchNorm2d, active_channels,
                                   at_width, set_width)

WIDTHS = [0.25, 0.3, 0.4, 0.5, 0.6, 0.77, 0.875, 0.95, 1.0]


def channels(full, width):
    return full if width == 1 else min(full, naive_divisible(
        full * width, 8, 8))


def equal(actual, expected, atol=0):
    """In float64 to the bit: the same call on the same numbers."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def check_slice(layer, inputs, width, run, shared, atol=0):
    """Outputs and gradients of ``layer`` equal those of hand-cut leaves.

    ``shared`` maps a parameter's name to its slice; ``run`` computes the
    layer from the input and the cut parameters.
    """
    leaves = {
        name: getattr(layer, name).detach()[cut].clone().requires_grad_()
        for name, cut in shared.items()
    }
    x1, x2 = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    layer.zero_grad()
    with at_width(layer, width):
        actual = layer(x1)
        (actual * actual.cos()).sum().backward()
    expected = run(x2, **leaves)
    (expected * expected.cos()).sum().backward()
    equal(actual, expected, atol)
    equal(x1.grad, x2.grad, atol)
    for name, cut in shared.items():
        grad = getattr(layer, name).grad
        equal(grad[cut], leaves[name].grad, atol)
        outside = torch.ones_like(grad, dtype=torch.bool)
        outside[cut] = False
        assert (grad[outside] == 0).all(), name
        assert (leaves[name].grad != 0).any(), name


def check_plain(layer, inputs, width, atol=0):
    plain = layer.plain(width)
    assert type(plain).__module__.startswith('torch.nn')
    assert plain.training == layer.training
    with at_width(layer, width):
        equal(plain(inputs), layer(inputs), atol)
    shared = {p.data_ptr() for p in layer.parameters()}
    assert not shared & {p.data_ptr() for p in plain.parameters()}


@pytest.mark.parametrize('width', WIDTHS)
@pytest.mark.parametrize('options', [
    dict(kernel_size=3),
    dict(kernel_size=1, bias=False),
    dict(kernel_size=3, stride=2, padding=1),
    dict(kernel_size=3, dilation=2, padding=2, bias=False),
    dict(kernel_size=(3, 1), slice_in=False),
    dict(kernel_size=3, slice_out=False)
], ids=str)
def test_dense_convolution_equals_slicing(width, options):
    layer = SlimmableConv2d(40, 64, **options).double()
    c_in, c_out = channels(40, width), channels(64, width)
    if not options.get('slice_in', True):
        c_in = 40
    if not options.get('slice_out', True):
        c_out = 64
    call = {
        k: v
        for k, v in options.items() if k in ('stride', 'padding', 'dilation')
    }
    shared = dict(weight=(slice(c_out), slice(c_in)))
    if options.get('bias', True):
        shared['bias'] = slice(c_out)
    x = torch.randn(2, c_in, 7, 6, dtype=torch.float64)
    check_slice(layer, x, width,
                lambda x, weight, bias=None: F.conv2d(x, weight, bias, **call),
                shared)
    check_plain(layer, x, width)


@pytest.mark.parametrize('width', WIDTHS)
@pytest.mark.parametrize('bias', [True, False])
def test_depthwise_convolution_equals_slicing(width, bias):
    layer = SlimmableConv2d(40, 40, 3, stride=2, padding=1, groups=40,
                            bias=bias).double()
    c = channels(40, width)
    x = torch.randn(2, c, 7, 6, dtype=torch.float64)
    check_slice(
        layer, x, width,
        lambda x, weight, bias=None: F.conv2d(x, weight, bias, 2, 1, groups=c),
        dict(weight=slice(c), **(dict(bias=slice(c)) if bias else {})))
    check_plain(layer, x, width)


def test_expand_ratio_rounds_the_narrow_side():
    # 16 channels expanded 6 times, at 0.7: make_divisible(11.2) = 16; 6 x 16.
    layer = SlimmableConv2d(16, 96, 1, slice_in=False, ratio=6)
    assert layer.active(0.7) == (16, 96) and layer.active(0.5) == (16, 48)
    assert active_channels(96, 0.7) == 64


@pytest.mark.parametrize(
    'options, message',
    [(dict(groups=4), 'dense.*or depthwise.*groups=4'),
     (dict(padding_mode='reflect'), "pads with 'zeros', got.*'reflect'")],
    ids=str)
def test_convolutions_that_cannot_be_cut_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SlimmableConv2d(16, 16, 3, **options)
    with pytest.raises(ValueError, match='depthwise'):
        SlimmableConv2d(16, 32, 3, groups=16)


@pytest.mark.parametrize('width', WIDTHS)
@pytest.mark.parametrize(
    'options',
    [{}, dict(bias=False),
     dict(slice_out=False),
     dict(slice_in=False)], ids=str)
def test_linear_equals_slicing(width, options):
    layer = SlimmableLinear(72, 40, **options).double()
    c_in = channels(72, width) if options.get('slice_in', True) else 72
    c_out = channels(40, width) if options.get('slice_out', True) else 40
    shared = dict(weight=(slice(c_out), slice(c_in)))
    if options.get('bias', True):
        shared['bias'] = slice(c_out)
    x = torch.randn(3, 2, c_in, dtype=torch.float64)
    # BLAS orders the sums over a strided matrix differently: last bits.
    check_slice(layer, x, width, F.linear, shared, atol=1e-12)
    check_plain(layer, x, width, atol=1e-12)


def norm_inputs(dims, c):
    g = torch.Generator().manual_seed(c)
    return 3 + 2 * torch.randn(5, c, *[3, 4][:dims], generator=g,
                               dtype=torch.float64)


NORMS = [(SlimmableBatchNorm1d, 0), (SlimmableBatchNorm1d, 1),
         (SlimmableBatchNorm2d, 2)]


def random_affine(norm):
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize('width', WIDTHS)
@pytest.mark.parametrize('kind, dims', NORMS)
def test_batch_norm_in_training_equals_the_formula_on_a_slice(
        width, kind, dims):
    norm, c = random_affine(kind(40, eps=1e-3).double()), channels(40, width)
    x = norm_inputs(dims, c)
    check_slice(
        norm, x, width, lambda x, weight, bias: F.batch_norm(
            x, None, None, weight, bias, True, 0.0, 1e-3),
        dict(weight=slice(c), bias=slice(c)))
    # And by hand, as torch may share a mistake with itself.
    rest = [0, *range(2, x.dim())]
    shape = [1, c] + [1] * dims
    mean = x.mean(rest, keepdim=True)
    expected = (x - mean) / (
        (x - mean)**2).mean(rest, keepdim=True).add(1e-3).sqrt()
    expected = (expected * norm.weight[:c].view(shape) +
                norm.bias[:c].view(shape))
    with at_width(norm, width):
        torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-12)
    check_plain(norm, x, width)


def test_training_tracks_no_statistics():
    norm = SlimmableBatchNorm2d(16)
    before = copy.deepcopy(norm.state_dict())
    for width in (1.0, 0.5):
        with at_width(norm, width):
            norm(norm_inputs(2, channels(16, width)).float())
    after = norm.state_dict()
    assert list(after) == list(before) and norm.measured_widths == []
    for key, value in before.items():
        equal(after[key], value)


def test_a_norm_without_slicing_stays_full():
    norm = SlimmableBatchNorm1d(40, slice_channels=False).double()
    x = norm_inputs(0, 40)
    expected = norm(x)
    with at_width(norm, 0.25):
        equal(norm(x), expected)
        assert norm.plain(0.25).num_features == 40


@pytest.mark.parametrize('kind, dims', NORMS)
@pytest.mark.parametrize('affine', [True, False])
def test_evaluation_uses_the_statistics_of_its_width(kind, dims, affine):
    norm = random_affine(kind(40, eps=1e-3, affine=affine).double())
    measured = {}
    for width in (0.5, 0.3, 1.0, 1 / 3):
        c = channels(40, width)
        measured[width] = torch.randn(c).double(), torch.rand(c).double() + .1
        norm.set_statistics(width, *measured[width])
    norm.eval()
    for width, (mean, var) in measured.items():
        c, shape = len(mean), [1, len(mean)] + [1] * dims
        x = norm_inputs(dims, c)
        expected = (x - mean.view(shape)) / (var + 1e-3).sqrt().view(shape)
        if affine:
            expected = (expected * norm.weight[:c].view(shape) +
                        norm.bias[:c].view(shape))
        with at_width(norm, width):
            torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-12)
        check_plain(norm, x, width)
    assert norm.measured_widths == pytest.approx([.3, 1 / 3, .5, 1], abs=1e-6)


def test_evaluation_without_statistics_says_how_to_measure_them():
    norm = SlimmableBatchNorm2d(16).eval()
    with pytest.raises(
            RuntimeError, match=r'width 1; measured are: none.*'
            r'calibrate\(network, batches, widths=\[1\]\)'):
        norm(torch.rand(2, 16, 3, 3))
    norm.set_statistics(0.5, torch.zeros(8), torch.ones(8))
    for width in (1.0, 0.75):
        with at_width(norm, width), pytest.raises(
                RuntimeError, match=f'width {width:g}; measured are: 0.5'):
            norm(torch.rand(2, channels(16, width), 3, 3))


def test_statistics_of_the_wrong_size_are_refused():
    norm = SlimmableBatchNorm2d(16)
    with pytest.raises(
            ValueError, match=r'0.5 have 8 channels, got mean of '
            r'shape \(16,\)'):
        norm.set_statistics(0.5, torch.zeros(16), torch.ones(16))
    assert norm.measured_widths == []


@pytest.mark.parametrize('steps', [16, 32, 64])
def test_a_measured_width_names_the_width_that_was_measured(steps):
    """Reading the widths back must not land on another channel count."""
    for k in range(steps // 4, steps + 1):
        norm = SlimmableBatchNorm1d(128)
        c = channels(128, k / steps)
        norm.set_statistics(k / steps, torch.zeros(c), torch.ones(c))
        assert norm.measured_widths == [k / steps]
        fresh = SlimmableBatchNorm1d(128)
        fresh.load_state_dict(norm.state_dict())
        assert fresh.measured_widths == [k / steps]


def measured_network():
    torch.manual_seed(3)
    net = nn.Sequential(SlimmableConv2d(3, 16, 1, slice_in=False),
                        random_affine(SlimmableBatchNorm2d(16))).double()
    for width in (1.0, 0.5):
        c = channels(16, width)
        net[1].set_statistics(width, torch.randn(c), torch.rand(c) + 0.5)
    return net.eval()


X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(5),
                dtype=torch.float64)


def outputs(net):
    found = []
    for width in (1.0, 0.5):
        with at_width(net, width), torch.no_grad():
            found.append(net(X))
    return found


def same_outputs(net, other):
    for actual, expected in zip(outputs(net), outputs(other)):
        equal(actual, expected)


def fresh_network():
    return nn.Sequential(SlimmableConv2d(3, 16, 1, slice_in=False),
                         SlimmableBatchNorm2d(16)).double().eval()


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


LOADERS = dict(
    torch=lambda net, state: net.load_state_dict(state),
    mmengine=lambda net, state: load_state_dict(net, state, strict=True))


@pytest.mark.parametrize('load', LOADERS.values(), ids=LOADERS)
def test_statistics_survive_a_checkpoint(load):
    net, fresh = measured_network(), fresh_network()
    load(fresh, through_a_file(net.state_dict()))
    same_outputs(fresh, net)
    assert fresh[1].measured_widths == [0.5, 1.0]
    again = fresh_network()
    load(again, through_a_file(fresh.state_dict()))
    same_outputs(again, net)


@pytest.mark.parametrize('load', LOADERS.values(), ids=LOADERS)
def test_a_file_without_statistics_clears_old_ones(load):
    net, other = measured_network(), fresh_network()
    load(net, through_a_file(other.state_dict()))
    assert net[1].measured_widths == []
    assert list(net.state_dict()) == list(other.state_dict())
    with pytest.raises(RuntimeError, match='measured are: none'):
        net(X)
    net = measured_network()
    narrow_only = fresh_network()
    narrow_only[1].set_statistics(0.25, torch.zeros(8), torch.ones(8))
    load(net, through_a_file(narrow_only.state_dict()))
    assert net[1].measured_widths == [0.25]


def test_statistics_survive_copies_and_casts():
    net = measured_network()
    twin = copy.deepcopy(net)
    same_outputs(twin, net)
    twin[1].clear_statistics()
    assert net[1].measured_widths == [0.5, 1.0]
    net.float()
    assert net[1].statistics(0.5)[0].dtype == torch.float32
    with at_width(net, 0.5):
        assert net(X.float()).dtype == torch.float32
    net.double()
    with at_width(net, 0.5):
        assert net(X).dtype == torch.float64


def test_a_training_step_forgets_statistics_and_measuring_does_not():
    net = measured_network().train()
    with torch.no_grad():
        net(X)
    assert net[1].measured_widths == [0.5, 1.0]
    net(X)
    assert net[1].measured_widths == []
    keys = list(fresh_network().state_dict())
    assert list(net.state_dict()) == keys
    equal(net[1].running_mean, torch.zeros(16).double())
    with pytest.raises(RuntimeError, match='measured are: none'):
        net.eval()(X)


@pytest.mark.parametrize('counted', [True, False])
@pytest.mark.parametrize('load', LOADERS.values(), ids=LOADERS)
def test_a_file_of_a_plain_network_runs_at_full_width(load, counted):
    plain = nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16)).double()
    random_affine(plain[1])
    for _ in range(3):
        plain(X + 1)
    plain.eval()
    state = dict(plain.state_dict())
    if not counted:  # as files from before torch 0.4.1
        del state['1.num_batches_tracked']
    net = fresh_network()
    load(net, state)
    equal(net(X), plain(X))
    assert net[1].measured_widths == [1.0]
    again = fresh_network()
    load(again, through_a_file(net.state_dict()))
    equal(again(X), plain(X))
    plain.load_state_dict(net.state_dict())  # and back


def test_a_file_of_a_plain_network_that_never_trained_has_no_statistics():
    net = measured_network()
    net.load_state_dict(
        nn.Sequential(nn.Conv2d(3, 16, 1),
                      nn.BatchNorm2d(16)).double().state_dict())
    assert net[1].measured_widths == []


@pytest.mark.parametrize('kind, dims', [(SwitchableBatchNorm1d, 0),
                                        (SwitchableBatchNorm2d, 2)])
def test_switchable_norms_are_private_plain_norms(kind, dims):
    widths = [1.0, 0.5, 0.3]
    norm = kind(40, widths, eps=1e-3).double()
    plain = {
        w: norm.plain_type(channels(40, w), eps=1e-3).double()
        for w in widths
    }
    for index, width in enumerate(norm.widths):
        random_affine(norm.norms[index])
        plain[width].load_state_dict(norm.norms[index].state_dict())
    for step in range(2):
        for width in widths:
            x = norm_inputs(dims, channels(40, width)) + step
            with at_width(norm, width):
                equal(norm(x), plain[width](x))
    norm.eval()
    for width in widths:
        x = norm_inputs(dims, channels(40, width))
        with at_width(norm, width):
            equal(norm(x), plain[width].eval()(x))
        check_plain(norm, x, width)
        assert norm.plain(width).eps == 1e-3
    fresh = kind(40, widths, eps=1e-3).double().eval()
    fresh.load_state_dict(norm.state_dict())
    with at_width(norm, 0.3), at_width(fresh, 0.3):
        equal(fresh(norm_inputs(dims, 16)), norm(norm_inputs(dims, 16)))


def test_switchable_norms_refuse_a_width_that_they_were_not_built_for():
    norm = SwitchableBatchNorm2d(16, [0.75, 0.5])
    with pytest.raises(
            ValueError, match=r'Width 0\.25 has no batch norm.*'
            r'\[0\.75, 0\.5\]'):
        set_width(norm, 0.25)
    with at_width(norm, 0.5):  # the full width before it need not be listed
        assert norm(torch.rand(2, 8, 3, 3)).shape == (2, 8, 3, 3)
    with pytest.raises(ValueError, match='Width 1 has no batch norm'):
        norm(torch.rand(2, 16, 3, 3))
    with pytest.raises(ValueError, match='needs a list of widths'):
        SwitchableBatchNorm2d(16, [])
    with pytest.raises(ValueError, match=r'multiplier in \(0, 1\]'):
        SwitchableBatchNorm2d(16, [1.0, 2.0])
