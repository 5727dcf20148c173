# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Slimmable layers against slicing by hand, and the life of statistics."""
import copy
import io

import pytest
import torch
import torch.nn.functional as F
from mmengine.runner.checkpoint import load_state_dict
from test_subnet import naive_divisible
from torch import nn

from us3l_mm.models import SlimmableProjector
from us3l_mm.models.layers import (
    SlimmableBatchNorm1d, SlimmableBatchNorm2d, SlimmableConv2d,
    SlimmableLayerNorm, SlimmableLinear, SlimmableQKV, Subnet,
    SwitchableBatchNorm1d, SwitchableBatchNorm2d, active_channels, at,
    at_width, check_statistics, has_statistics, set_subnet)

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
        for name, cut in shared.items()}
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
    dict(kernel_size=3, slice_out=False)], ids=str)
def test_dense_convolution_equals_slicing(width, options):
    layer = SlimmableConv2d(40, 64, **options).double()
    c_in, c_out = channels(40, width), channels(64, width)
    if not options.get('slice_in', True):
        c_in = 40
    if not options.get('slice_out', True):
        c_out = 64
    call = {
        k: v for k, v in options.items()
        if k in ('stride', 'padding', 'dilation')}
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


@pytest.mark.parametrize('options, message', [
    (dict(groups=4), 'dense.*or depthwise.*groups=4'),
    (dict(padding_mode='reflect'), "pads with 'zeros', got.*'reflect'")],
                         ids=str)
def test_convolutions_that_cannot_be_cut_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SlimmableConv2d(16, 16, 3, **options)
    with pytest.raises(ValueError, match='depthwise'):
        SlimmableConv2d(16, 32, 3, groups=16)


@pytest.mark.parametrize('width', WIDTHS)
@pytest.mark.parametrize('options', [{},
                                     dict(bias=False),
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


def widths_of(norm):
    """The widths whose statistics are measured, from narrow to wide."""
    return [subnet.width for subnet in norm.measured_subnets()]


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
    assert list(after) == list(before) and widths_of(norm) == []
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
    assert widths_of(norm) == pytest.approx([.3, 1 / 3, .5, 1], abs=1e-6)


def test_evaluation_without_statistics_says_how_to_measure_them():
    norm = SlimmableBatchNorm2d(16).eval()
    with pytest.raises(
            ValueError, match=r'for w1.00; measured are: none.*'
            r'calibrate\(network, batches, \[1.0\]\)'):
        norm(torch.rand(2, 16, 3, 3))
    norm.set_statistics(0.5, torch.zeros(8), torch.ones(8))
    for width in (1.0, 0.75):
        message = f'for w{width:.2f}; measured are: w0.50.*--widths {width}'
        with at_width(norm, width), pytest.raises(ValueError, match=message):
            norm(torch.rand(2, channels(16, width), 3, 3))
        with pytest.raises(ValueError, match=message):
            check_statistics(nn.Sequential(norm), width)
        assert not has_statistics(norm, width)
    assert has_statistics(norm, '0.5')


def test_statistics_of_the_wrong_size_are_refused():
    norm = SlimmableBatchNorm2d(16)
    with pytest.raises(
            ValueError, match=r'w0.50 have 8 channels, got a mean of '
            r'shape \(16,\)'):
        norm.set_statistics(0.5, torch.zeros(16), torch.ones(16))
    assert widths_of(norm) == []


@pytest.mark.parametrize('steps', [16, 32, 64])
def test_a_measured_width_names_the_width_that_was_measured(steps):
    """Reading the widths back must not land on another channel count."""
    for k in range(steps // 4, steps + 1):
        norm = SlimmableBatchNorm1d(128)
        c = channels(128, k / steps)
        norm.set_statistics(k / steps, torch.zeros(c), torch.ones(c))
        assert widths_of(norm) == [k / steps]
        fresh = SlimmableBatchNorm1d(128)
        fresh.load_state_dict(norm.state_dict())
        assert widths_of(fresh) == [k / steps]


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
    assert widths_of(fresh[1]) == [0.5, 1.0]
    again = fresh_network()
    load(again, through_a_file(fresh.state_dict()))
    same_outputs(again, net)


@pytest.mark.parametrize('load', LOADERS.values(), ids=LOADERS)
def test_a_file_without_statistics_clears_old_ones(load):
    net, other = measured_network(), fresh_network()
    load(net, through_a_file(other.state_dict()))
    assert widths_of(net[1]) == []
    assert list(net.state_dict()) == list(other.state_dict())
    with pytest.raises(ValueError, match='measured are: none'):
        net(X)
    net = measured_network()
    narrow_only = fresh_network()
    narrow_only[1].set_statistics(0.25, torch.zeros(8), torch.ones(8))
    load(net, through_a_file(narrow_only.state_dict()))
    assert widths_of(net[1]) == [0.25]


def test_statistics_survive_copies_and_casts():
    net = measured_network()
    twin = copy.deepcopy(net)
    same_outputs(twin, net)
    twin[1].clear_statistics()
    assert widths_of(net[1]) == [0.5, 1.0]
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
    assert widths_of(net[1]) == [0.5, 1.0]
    net(X)
    assert widths_of(net[1]) == []
    keys = list(fresh_network().state_dict())
    assert list(net.state_dict()) == keys
    equal(net[1].running_mean, torch.zeros(16).double())
    with pytest.raises(ValueError, match='measured are: none'):
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
    assert widths_of(net[1]) == [1.0]
    again = fresh_network()
    load(again, through_a_file(net.state_dict()))
    equal(again(X), plain(X))
    plain.load_state_dict(net.state_dict())  # and back


def test_a_file_of_a_plain_network_that_never_trained_has_no_statistics():
    net = measured_network()
    net.load_state_dict(
        nn.Sequential(nn.Conv2d(3, 16, 1),
                      nn.BatchNorm2d(16)).double().state_dict())
    assert widths_of(net[1]) == []


SWITCHABLE = [(SwitchableBatchNorm1d, 0), (SwitchableBatchNorm2d, 2)]
FULL = Subnet()


def own_norm(norm, subnet):
    """The norm that holds what belongs to ``subnet``."""
    subnet = Subnet.of(subnet)
    return norm if subnet.is_full else getattr(norm, subnet.key)


@pytest.mark.parametrize('subnets', [[1.0, 0.5, 0.3], ['gated', 'dense'],
                                     [1.0, 0.5, 'gated', 'w0.50_gated']],
                         ids=str)
@pytest.mark.parametrize('kind, dims', SWITCHABLE)
def test_switchable_norms_are_private_plain_norms(kind, dims, subnets):
    """Outputs, gradients and running statistics."""
    norm = kind(40, subnets, eps=1e-3, momentum=0.3).double()
    subnets = [Subnet.of(subnet) for subnet in subnets]
    plain = {}
    for subnet in subnets:
        random_affine(own_norm(norm, subnet))
        c = channels(40, subnet.width)
        plain[subnet] = kind.plain_type(c, eps=1e-3, momentum=0.3).double()
        plain[subnet].load_state_dict({
            name: value
            for name, value in own_norm(norm, subnet).state_dict().items()
            if '.' not in name})
    for step in range(2):
        for subnet in subnets:
            x = norm_inputs(dims, channels(40, subnet.width)) + step
            with at(norm, subnet):
                y = norm(x)
                equal(y, plain[subnet](x))
                y.square().cos().sum().backward()
                plain[subnet](x).square().cos().sum().backward()
            other = plain[subnet]
            other.running_mean.copy_(own_norm(norm, subnet).running_mean)
            other.running_var.copy_(own_norm(norm, subnet).running_var)
            other.num_batches_tracked.sub_(1)  # it has seen the batch twice
    for subnet in subnets:
        own = own_norm(norm, subnet)
        assert own.num_batches_tracked == 2
        equal(own.weight.grad, plain[subnet].weight.grad)
        equal(own.bias.grad, plain[subnet].bias.grad)
    norm.eval()
    for subnet in subnets:
        x = norm_inputs(dims, channels(40, subnet.width))
        with at(norm, subnet):
            equal(norm(x), plain[subnet].eval()(x))
            copied = norm.plain(subnet)
            equal(copied(x), norm(x))
        assert type(copied) is kind.plain_type and copied.eps == 1e-3
        assert copied.momentum == 0.3 and not copied.training
        own = {p.data_ptr() for p in norm.parameters()}
        assert not own & {p.data_ptr() for p in copied.parameters()}
    fresh = kind(40, subnets, eps=1e-3).double().eval()
    fresh.load_state_dict(through_a_file(norm.state_dict()))
    for subnet in subnets:
        x = norm_inputs(dims, channels(40, subnet.width))
        with at(norm, subnet), at(fresh, subnet):
            equal(fresh(x), norm(x))


def test_running_statistics_are_those_of_one_sub_network():
    norm = SwitchableBatchNorm1d(16, [1.0, 0.5]).double()
    x = norm_inputs(0, 8)
    with at_width(norm, 0.5):
        norm(x)
    equal(norm.w0500000.running_mean, 0.1 * x.mean(0), atol=1e-12)
    equal(norm.w0500000.running_var, 0.9 + 0.1 * x.var(0), atol=1e-12)
    equal(norm.running_mean, torch.zeros(16).double())
    assert norm.num_batches_tracked == 0


def test_the_keys_of_a_switchable_norm_name_its_sub_networks():
    norm = SwitchableBatchNorm2d(16, [0.5, 1.0, 'gated', 'w0.25_gated'])
    keys = list(nn.BatchNorm2d(16).state_dict())
    assert set(norm.state_dict()) == {
        prefix + key
        for prefix in ('', 'w0500000.', 'gated.', 'w0250000_gated.')
        for key in keys}
    shapes = {k: tuple(v.shape) for k, v in norm.state_dict().items()}
    assert shapes['weight'] == shapes['gated.weight'] == (16, )
    assert shapes['w0500000.weight'] == (8, )


@pytest.mark.parametrize('load', LOADERS.values(), ids=LOADERS)
def test_a_numbered_file_of_an_earlier_version_loads(load):
    """``norms.0`` was the widest, whatever the order in the config."""
    widths = [0.5, 1.0, 0.25]
    net = nn.Sequential(SlimmableConv2d(3, 16, 1, slice_in=False),
                        SwitchableBatchNorm2d(16, widths)).double()
    old = {'0.weight': net[0].weight, '0.bias': net[0].bias}
    for index, c in enumerate((16, 8, 8)):
        old.update({
            f'1.norms.{index}.weight':
            torch.randn(c),
            f'1.norms.{index}.bias':
            torch.randn(c),
            f'1.norms.{index}.running_mean':
            torch.randn(c),
            f'1.norms.{index}.running_var':
            torch.rand(c),
            f'1.norms.{index}.num_batches_tracked':
            torch.tensor(index + 1), })
    load(net, dict(old))
    for index, own in enumerate((net[1], net[1].w0500000, net[1].w0250000)):
        for name in ('weight', 'bias', 'running_mean', 'running_var',
                     'num_batches_tracked'):
            expected = old[f'1.norms.{index}.{name}']
            equal(getattr(own, name).data, expected.to(getattr(own, name)))
    with pytest.raises(
            ValueError, match=r'file has 3 batch norms under norms, and this '
            r'network has 2, those of \[w1.00, w0.50\]'):
        SwitchableBatchNorm2d(16, [1.0, 0.5]).load_state_dict({
            key[2:]: value for key, value in old.items() if key[0] == '1'})


@pytest.mark.parametrize('load', LOADERS.values(), ids=LOADERS)
def test_a_file_of_another_list_is_refused_naming_both(load):
    names = dict(theirs=r'\[w1.00, w0.50, w0.25\]', ours=r'\[w1.00, gated\]')
    file = nn.Sequential(SwitchableBatchNorm2d(16, [1.0, 0.5, 0.25]))
    net = nn.Sequential(SwitchableBatchNorm2d(16, ['dense', 'gated']))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(
            ValueError, match=f'file has batch norms for {names["theirs"]}, '
            f'and this network was built for {names["ours"]}'):
        load(net, file.state_dict())
    for key, value in net.state_dict().items():
        equal(value, before[key])
    with pytest.raises(
            ValueError, match=f'has batch norms for {names["ours"]}'
            f'.*built for {names["theirs"]}'):
        load(file, net.state_dict())
    plain = nn.Sequential(nn.BatchNorm2d(16))
    with pytest.raises(ValueError, match=r'for \[w1.00\], and this network'):
        load(net, plain.state_dict())


def test_the_norm_of_one_sub_network_is_picked_from_a_file():
    norm = SwitchableBatchNorm2d(16, [1.0, 0.5, 'gated'])
    for p in norm.parameters():
        nn.init.normal_(p)
    for subnet in (FULL, Subnet(0.5), Subnet(gated=True)):
        state = {f'bn.{k}': v for k, v in norm.state_dict().items()}
        norm.pick(state, 'bn.', subnet)
        plain = {
            f'bn.{k}': v for k, v in norm.plain(subnet).state_dict().items()}
        assert state.keys() == plain.keys()
        for key, value in plain.items():
            equal(state[key], value)


def test_switchable_norms_refuse_a_width_that_they_were_not_built_for():
    norm = SwitchableBatchNorm2d(16, [1.0, 0.75, 0.5])
    with pytest.raises(
            ValueError, match=r'no batch norm of its own for w0\.25.*'
            r'\[w1\.00, w0\.75, w0\.50\].*norm_cfg.subnets'):
        set_subnet(norm, 0.25)
    with at_width(norm, 0.5):
        assert norm(torch.rand(2, 8, 3, 3)).shape == (2, 8, 3, 3)
    with pytest.raises(ValueError, match='of its own for w0.25'):
        norm.plain(0.25)
    with pytest.raises(ValueError, match='at least one, each named once'):
        SwitchableBatchNorm2d(16, [])
    with pytest.raises(ValueError, match='at least one, each named once'):
        SwitchableBatchNorm2d(16, [1.0, 0.5, 'w0.50'])
    with pytest.raises(ValueError, match=r'multiplier in \(0, 1\]'):
        SwitchableBatchNorm2d(16, [1.0, 2.0])


@pytest.mark.parametrize('load', LOADERS.values(), ids=LOADERS)
def test_a_list_need_not_have_the_full_network(load):
    """Files of earlier versions number such norms too."""

    def build(widths):
        return nn.Sequential(SwitchableBatchNorm2d(16, widths)).double()

    net, other = build([0.5, 0.75]), build([0.75, 0.5])
    old = {
        f'0.norms.{index}.{name}': torch.rand(c)
        for index, c in enumerate((channels(16, 0.75), 8))
        for name in ('weight', 'bias', 'running_mean', 'running_var')}
    old.update({
        f'0.norms.{i}.num_batches_tracked': torch.tensor(i) for i in range(2)})
    load(net, dict(old))
    load(other, through_a_file(net.state_dict()))
    assert all(not key.startswith(('0.w', '0.b')) or '.w0' in key
               for key in net.state_dict())
    for width, index in ((0.75, 0), (0.5, 1)):
        plain = nn.BatchNorm2d(channels(16, width)).double()
        plain.load_state_dict({
            key.rpartition('.')[2]: value for key, value in old.items()
            if key.startswith(f'0.norms.{index}.')})
        x = norm_inputs(2, channels(16, width))
        for each in (net.eval(), other.eval()):
            with at_width(each, width):
                equal(each(x), plain.eval()(x))
            equal(each[0].plain(width)(x), plain(x))
    for fails in (lambda: net(torch.rand(2, 16, 3, 3).double()),
                  lambda: net[0].plain(1.0)):
        with pytest.raises(ValueError, match='norm of its own for w1.00'):
            fails()
    full = build([1.0, 0.75, 0.5])
    for one, two in ((full, net), (net, full)):
        with pytest.raises(ValueError, match=r'file has batch norms for'):
            load(one, two.state_dict())


# Projectors ------------------------------------------------------------------


def narrow_projector(projector, width, layers, norms=None):
    """A plain network with copies of the leading weights, cut by hand."""
    modules, c_in = [], None
    for i in range(layers):
        fc = getattr(projector, f'fc{i}')
        c_in = channels(fc.in_features, width)
        last = i == layers - 1
        c_out = fc.out_features if last else channels(fc.out_features, width)
        plain = nn.Linear(c_in, c_out, fc.bias is not None).double()
        plain.weight.data = fc.weight.detach()[:c_out, :c_in].clone()
        if fc.bias is not None:
            plain.bias.data = fc.bias.detach()[:c_out].clone()
        modules.append(plain)
        norm = getattr(projector, f'bn{i}', None)
        if norm is not None:
            own = norm if norms is None else norms(norm)
            affine = own.weight is not None
            plain = nn.BatchNorm1d(c_out, affine=affine).double()
            if affine:
                plain.weight.data = own.weight.detach()[:c_out].clone()
                plain.bias.data = own.bias.detach()[:c_out].clone()
            modules.append(plain)
        if not last:
            modules.append(nn.ReLU())
    return nn.Sequential(*modules).train()


@pytest.mark.parametrize('ends', [
    dict(with_last_bn=True),
    dict(with_last_bn=True, with_last_bn_affine=False),
    dict(with_last_bn=False, with_last_bias=True, with_bias=True)], ids=str)
@pytest.mark.parametrize('private', [False, True], ids=[
    'slimmable', 'switchable'])
@pytest.mark.parametrize('width', [1.0, 0.5, 0.3])
def test_a_projector_of_narrow_hidden_layers_is_a_narrow_network(
        width, private, ends):
    norm_cfg = dict(type='us3l_mm.SlimmableBatchNorm1d')
    if private:
        norm_cfg = dict(type='us3l_mm.SwitchableBatchNorm1d', subnets=[
            1.0, 0.5, 0.3])
    projector = SlimmableProjector(64, 40, 12, num_layers=3, slice_hidden=True,
                                   norm_cfg=norm_cfg, **ends).double().train()
    for p in projector.parameters():
        nn.init.normal_(p, std=0.3)
    plain = narrow_projector(
        projector, width, 3,
        (lambda norm: own_norm(norm, width)) if private else None)
    x1 = torch.randn(6, channels(64, width), 3, 2, dtype=torch.float64)
    x2 = x1.clone().requires_grad_()
    x1.requires_grad_()
    with at_width(projector, width):
        z, = projector((x1, ))
        z.cos().sum().backward()
    expected = plain(x2.mean((2, 3)))
    expected.cos().sum().backward()
    assert z.shape == (6, 12)
    equal(z, expected, atol=1e-12)
    equal(x1.grad, x2.grad, atol=1e-12)
    rows, c_in = plain[0].weight.shape
    grad = projector.fc0.weight.grad
    equal(grad[:rows, :c_in], plain[0].weight.grad, atol=1e-12)
    assert not grad[rows:].any() and not grad[:, c_in:].any()


@pytest.mark.parametrize('width', [1.0, 0.5, 0.3])
def test_a_projector_narrows_at_its_input_alone(width):
    projector = SlimmableProjector(64, 40, 12, num_layers=3).double().train()
    x = torch.randn(6, channels(64, width), dtype=torch.float64)
    with at_width(projector, width):
        z, = projector((x, ))
    hidden = x @ projector.fc0.weight[:, :x.shape[1]].T
    for norm, fc in ((projector.bn0, projector.fc1), (projector.bn1,
                                                      projector.fc2)):
        hidden = F.relu(
            F.batch_norm(hidden, None, None, norm.weight, norm.bias,
                         True)) @ fc.weight.T
    last = projector.bn2
    equal(z, F.batch_norm(hidden, None, None, last.weight, last.bias, True),
          atol=1e-12)


def test_hidden_layers_cannot_narrow_in_steps():
    with pytest.raises(ValueError, match='multiples of a divisor.*3 steps'):
        SlimmableProjector(48, 32, 16, slice_hidden=True, steps=3)


# What a layer prints ---------------------------------------------------------


@pytest.mark.parametrize('layer, plain, says', [
    (SlimmableConv2d(16, 32, 3, slice_in=False, bias=False),
     nn.Conv2d(16, 32, 3,
               bias=False), 'slice_in=False, slice_out=True, active=16->16'),
    (SlimmableLinear(16, 32, slice_out=False), nn.Linear(
        16, 32), 'slice_in=True, slice_out=False, active=8->32'),
    (SlimmableQKV(16, 2, steps=2), nn.Linear(
        16, 48), 'slice_in=True, slice_out=True, active=8->24'),
    (SlimmableBatchNorm2d(16), nn.BatchNorm2d(16), 'active=8, measured=[]'),
    (SlimmableLayerNorm(16, 2), nn.LayerNorm(16), 'active=8'),
    (SwitchableBatchNorm1d(16, [1.0, 'gated', 0.5]), nn.BatchNorm1d(16),
     'subnets=[w1.00, gated, w0.50]'), ],
                         ids=lambda value: type(value).__name__)
def test_a_layer_shows_its_sub_network_and_its_slicing(layer, plain, says):
    with at_width(layer, 0.5):
        text = layer.extra_repr()
    assert text == f'{plain.extra_repr()}, subnet=w0.50, {says}'
    assert 'subnet=w1.00' in repr(layer)


def test_a_norm_shows_what_was_measured():
    norm = SlimmableBatchNorm2d(16)
    norm.set_statistics(0.5, torch.zeros(8), torch.ones(8))
    norm.set_statistics(1, torch.zeros(16), torch.ones(16))
    assert norm.extra_repr().endswith('measured=[w0.50, w1.00]')
