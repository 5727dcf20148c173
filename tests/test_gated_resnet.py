# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A gated ResNet, dense against MMPretrain's and gated against its masks."""
import pytest
import torch
from mmpretrain.models import ResNet, ResNet_CIFAR
from torch import nn

from us3l_mm.export import slice_network
from us3l_mm.models import GatedResNet, GatedResNet_CIFAR
from us3l_mm.models.layers import (
    FULL, GATED, ChannelGate, Gating, SlimmableLayer, SwitchableGate,
    active_counts, at, gate, has_statistics, subnets_of)

SMALL = dict(base_channels=16, stem_channels=16)
SHARED = dict(type='BN')
CLASSES = [(GatedResNet, ResNet, {}),
           (GatedResNet_CIFAR, ResNet_CIFAR, dict(stem_padding=1))]


def images(count=4, pixels=32):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, pixels, pixels, generator=draw)


def randomised(network):
    """With affine parameters and statistics that are no ones and zeros."""
    draw = torch.Generator().manual_seed(1)
    for value in network.state_dict().values():
        if value.dim() == 1:
            value.copy_(torch.rand(value.shape, generator=draw) + 0.5)
    return network


def is_private(name):
    return '.gate' in name


@pytest.mark.parametrize('depth', [18, 34, 50])
@pytest.mark.parametrize('ours, theirs, kwargs', CLASSES, ids=[
    'imagenet', 'cifar'])
@pytest.mark.parametrize('norm', [None, SHARED], ids=['private', 'shared'])
def test_dense_mode_is_the_plain_network(depth, ours, theirs, kwargs, norm):
    network = randomised(ours(depth, norm_cfg=norm, **kwargs, **SMALL))
    plain = theirs(depth, **SMALL)
    keys = {k: v for k, v in network.state_dict().items() if not is_private(k)}
    assert keys.keys() == plain.state_dict().keys()
    plain.load_state_dict(keys, strict=True)
    for train in (False, True):
        plain.train(train), network.train(train)
        with torch.no_grad(), at(network, 'dense'):
            for own, other in zip(network(images()), plain(images())):
                assert torch.equal(own, other)
    # Statistics, too, are tracked as in the plain network.
    for name, value in plain.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('mode', ['dense', 'gated'])
def test_a_mode_is_sliced_to_a_plain_network(depth, mode):
    network = randomised(GatedResNet(depth, **SMALL)).eval()
    plain = slice_network(network, mode)
    assert not any(isinstance(m, SlimmableLayer) for m in plain.modules())
    with torch.no_grad(), at(network, mode):
        assert torch.equal(plain(images())[-1], network(images())[-1])
    if mode == 'dense':
        ResNet(depth, **SMALL).load_state_dict(plain.state_dict(), strict=True)
    else:
        gates = [m for m in plain.modules() if type(m) is ChannelGate]
        assert len(gates) == {18: 8, 50: 32}[depth]


def test_the_modes_are_named_as_widths_are():
    network = GatedResNet(18, **SMALL)
    assert subnets_of(network) == [FULL, GATED]
    assert has_statistics(network, 'gated')
    assert network.feature_channels('gated') == (128, )
    for name in (0.5, 'w0.50_gated'):
        with pytest.raises(ValueError, match='Width 0.5 is outside'):
            with at(network, name):
                pass


# Compute ---------------------------------------------------------------------


@pytest.mark.parametrize('network, pixels, total, floor, densities', [
    (GatedResNet_CIFAR, 32, 703_560_448, .0150, (.086, .289, .492)),
    (GatedResNet, 96, 333_103_104, .0764, (.026, .242, .458)),
    (GatedResNet, 224, 1_813_561_344, .0758, (.026, .243, .459))], ids=[
        'cifar', 'stl', 'imagenet'])
def test_totals_of_the_paper(network, pixels, total, floor, densities):
    """As published, to the digit; shares to the digits that are printed."""
    network = network(18)
    compute = network.compute((pixels, pixels))
    assert compute.total == total
    assert compute.floor == pytest.approx(floor, abs=5e-5)
    assert [*compute.channels.tolist()] == [
        64, 64, 128, 128, 256, 256, 512, 512]
    # One for each gate costs what the floor and a channel of it do.
    for target, density in zip((.1, .3, .5), densities):
        found = compute.target_density(target)
        assert found == pytest.approx(density, abs=5e-4)
        counts = compute.channels[None] * found
        assert float(compute.ratio(counts)) == pytest.approx(target)
    everything = compute.macs(compute.channels[None])
    assert int(everything) == total + 240_640
    gates = [p for name, p in network.named_parameters() if '.gate1.' in name]
    assert sum(p.numel() for p in gates) == 241_376


@pytest.mark.parametrize('make, depth, pixels', [(GatedResNet_CIFAR, 18, 9),
                                                 (GatedResNet, 18, 40),
                                                 (GatedResNet, 34, 33),
                                                 (GatedResNet, 50, 64),
                                                 (GatedResNet_CIFAR, 50, 10)])
def test_compute_is_that_of_a_network_without_the_channels_off(
        make, depth, pixels):
    """Counted by PyTorch's counter in convolutions that have been cut."""
    from torch.utils.flop_counter import FlopCounterMode
    network = make(depth, **SMALL)
    compute = network.compute((pixels, pixels))
    draw = torch.Generator().manual_seed(0)
    counts = [
        int(torch.randint(1,
                          int(c) + 1, (), generator=draw))
        for c in compute.channels]
    expected = compute.macs(torch.tensor([counts]))
    left = iter(counts)
    gate_macs = 0
    for block in network.blocks.values():
        for i in range(1, block.num_convs):
            n = next(left)
            unit = getattr(block, f'gate{i}')
            gate_macs += unit.conv1.weight.numel() + unit.conv2.weight.numel()
            first, second = (getattr(block, f'conv{j}') for j in (i, i + 1))
            first.weight = nn.Parameter(first.weight[:n])
            second.weight = nn.Parameter(second.weight[:, :n])
            setattr(block, getattr(block, f'norm{i}_name'), nn.Identity())
    network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images(1, pixels))
    assert int(expected) == counter.get_total_flops() // 2 + gate_macs
    assert expected == expected.round()


def test_compute_follows_the_size_of_the_images_and_is_counted_once():
    network = GatedResNet(18)
    small, large = (network.compute((n, n)) for n in (96, 224))
    assert small.total < large.total
    assert network.compute((96, 96)) is small
    assert GatedResNet_CIFAR(18, stem_padding=1).compute(
        (32, 32)).total == 555_417_600


@pytest.mark.parametrize('depth', [18, 50])
def test_compute_of_densities(depth):
    """Linear in the density for two convolutions a block, square for three."""
    compute = GatedResNet(depth).compute((224, 224))
    low, middle, high = (float(compute.ratio(compute.channels[None] * d))
                         for d in (0, .5, 1))
    bend = low + high - 2 * middle
    assert low == pytest.approx(compute.floor)
    assert bend == pytest.approx(0, abs=1e-12) if depth == 18 else bend > 0.1
    with pytest.raises(ValueError, match='target=0.01 is not a compute'):
        compute.target_density(0.01)


# Gates -----------------------------------------------------------------------


def test_masks_in_training_follow_noise_and_in_evaluation_do_not():
    torch.manual_seed(0)
    unit = ChannelGate(16, 32)
    x = torch.randn(64, 16, 5, 5)
    first, second = unit(x), unit(x)
    assert {*first.mask.unique().tolist()} == {0.0, 1.0}
    assert not torch.equal(first.mask, second.mask)
    # On with the probability that the logit says: 200 draws of 2048 channels.
    mean = torch.stack([unit(x).mask.detach() for _ in range(200)]).mean(0)
    assert (mean - first.probability).abs().mean() < 0.04
    assert abs(float((mean - first.probability.detach()).mean())) < 0.005
    unit.eval()
    one, other = unit(x), unit(x)
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.mask, (one.logits >= 0).float())
    assert torch.equal(unit(x[:1]).mask, one.mask[:1])


def test_the_gradient_is_that_of_the_soft_mask():
    torch.manual_seed(0)
    unit = ChannelGate(8, 6, temperature=0.5).double()
    x = torch.randn(5, 8, 3, 3, dtype=torch.float64)
    weights = torch.randn(5, 6, dtype=torch.float64)
    state = torch.get_rng_state()
    grads = torch.autograd.grad((unit(x).mask * weights).sum(),
                                unit.conv2.weight)
    torch.set_rng_state(state)
    logits = unit(x).logits
    torch.set_rng_state(state)
    u = torch.rand_like(logits)
    soft = ((logits + (u / (1 - u)).log()) / 0.5).sigmoid()
    expected = torch.autograd.grad((soft * weights).sum(), unit.conv2.weight)
    torch.testing.assert_close(grads, expected)


def test_noise_is_finite_at_the_ends_of_the_interval(monkeypatch):
    for value in (0.0, 1.0):
        monkeypatch.setattr(torch, 'rand_like',
                            lambda x, value=value: torch.full_like(x, value))
        noise = gate.logistic_noise(torch.zeros(3))
        assert noise.isfinite().all() and noise.abs().max() < 17
        assert (noise > 0).all() == (value == 1.0)


def test_noise_is_logistic():
    torch.manual_seed(0)
    noise = gate.logistic_noise(torch.zeros(100_000))
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.var()) == pytest.approx(torch.pi**2 / 3, rel=0.02)


def test_all_ones_are_the_dense_network_with_shared_norms(monkeypatch):
    monkeypatch.setattr(
        SwitchableGate, 'forward', lambda self, x: Gating(*[
            x.new_ones(len(x), self.conv2.out_channels)] * 2)
        if self.subnet.gated else None)
    network = randomised(GatedResNet(18, norm_cfg=SHARED, **SMALL))
    for train in (False, True):
        network.train(train)
        with at(network, 'gated'):
            maps, gatings = network.forward_gated(images())
        dense, none = network.forward_gated(images())
        assert len(gatings) == 8 and none == []
        assert torch.equal(maps[-1], dense[-1])


def test_masks_take_channels_out_of_the_second_convolution():
    network = randomised(GatedResNet(18, **SMALL)).eval()
    block = network.blocks['layer1.0']
    seen = []
    block.conv2.register_forward_hook(
        lambda _, inputs, output: seen.append(inputs[0]))
    with torch.no_grad(), at(network, 'gated'):
        _, gatings = network.forward_gated(images())
    network(images())
    gated, dense = seen
    mask = gatings[0].mask
    assert 0 < mask.mean() < 1
    off = mask[..., None, None].expand_as(gated) == 0
    assert (gated[off] == 0).all() and (dense[off] != 0).any()
    counts = active_counts(gatings)
    assert counts.shape == (4, 8)
    assert torch.equal(counts[:, 0], mask.sum(1))
    assert torch.equal(
        active_counts(gatings, expected=True)[:, 3],
        gatings[3].logits.sigmoid().sum(1))


@pytest.mark.parametrize('mode, other', [('dense', 'gated'),
                                         ('gated', 'dense')])
def test_a_mode_leaves_the_norms_and_gates_of_the_other_alone(mode, other):
    network = GatedResNet(18, **SMALL).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}

    def owner(name):
        if '.gate' in name:  # of a gate, or the norm of gated mode
            return 'gated'
        in_block = name.startswith('layer') and '.bn' in name
        return 'dense' if in_block else 'both'

    with at(network, mode):
        network(images())[-1].square().sum().backward()
    for name, value in network.state_dict().items():
        if owner(name) == other:
            assert torch.equal(value, before[name]), name
    changed = [
        k for k, v in network.state_dict().items()
        if not torch.equal(v, before[k])]
    assert any(owner(name) == mode for name in changed)
    for name, p in network.named_parameters():
        assert (p.grad is None) == (owner(name) == other), name


@pytest.mark.parametrize('kwargs, message', [
    (dict(depth=19), 'depths .*got depth=19'),
    (dict(deep_stem=True), 'has no deep_stem'),
    (dict(with_cp=True), 'has no with_cp'),
    (dict(temperature=0.0), 'above 0, got 0.0'),
    (dict(temperature=-1.0), 'above 0, got -1.0'),
    (dict(reduction=0), 'got 0'),
    (dict(reduction=17), 'integer from 1 to 16 here, got 17'),
    (dict(reduction=2.5), 'got 2.5'),
    (dict(norm_cfg=dict(type='LN')), "got 'LN'"),
    (dict(norm_cfg=dict(type='SwitchableBN', subnets=['dense'])),
     r"modes \['dense', 'gated'\], got norm_cfg.subnets=\['dense'\]"),
    (dict(norm_cfg=dict(type='SwitchableBN', subnets=[1.0, 0.5])),
     'Leave it out'), ], ids=str)
def test_mistakes_are_explained(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GatedResNet(**{**dict(depth=18), **SMALL, **kwargs})
    with pytest.raises(ValueError, match='got -1'):
        GatedResNet_CIFAR(18, stem_padding=-1)


def test_one_image_has_no_statistics_for_a_gate():
    network = GatedResNet(18, **SMALL).train()
    with at(network, 'gated'):
        with pytest.raises(ValueError, match='one image.*evaluation mode'):
            network(images(1))


def test_the_weights_of_another_network_are_refused():
    state = GatedResNet(18, **SMALL).state_dict()
    GatedResNet(18, **SMALL).load_state_dict(state)
    with pytest.raises(ValueError, match='GatedResNet'):
        GatedResNet(34, **SMALL).load_state_dict(state)
    with pytest.raises(ValueError, match='gate1'):
        GatedResNet(18, norm_cfg=SHARED, **SMALL).load_state_dict(
            ResNet(18, **SMALL).state_dict())


def test_blocks_begin_as_the_identity_if_asked():
    for zero in (False, True):
        network = GatedResNet(18, zero_init_residual=zero, **SMALL)
        network.init_weights()
        for block in network.blocks.values():
            for norm in (block.bn2, block.bn2.gated):
                assert (norm.weight == 1 - zero).all()
            assert (block.bn1.gated.weight == 1).all()
            # The gates are initialised as the other convolutions are.
            conv = block.gate1.conv2
            deviation = (2 / conv.out_channels)**0.5
            assert float(conv.weight.detach().std()) == pytest.approx(
                deviation, rel=0.25)
