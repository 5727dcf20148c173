# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The networks of SlimCLR: their sizes, and what a width of them is."""
import pytest
import torch
from algorithms import randomise
from mmpretrain.models import ResNet, ResNet_CIFAR
from torch import nn

from us3l_mm.evaluation.complexity import count_complexity
from us3l_mm.export import plain_arguments, slice_network
from us3l_mm.export.formats.artifact import SlicedNetwork
from us3l_mm.export.formats.openmmlab import consumer_arguments
from us3l_mm.models import SlimmableResNet, SlimmableResNet_CIFAR, at_width
from us3l_mm.models.layers import Subnet
from us3l_mm.registry import MODELS

WIDTHS = [1.0, 0.75, 0.5, 0.25]
NORMS = dict(type='SwitchableBN', subnets=WIDTHS)
# Of ResNet-50 by width: weights of convolutions, affine parameters of norms,
# parameters and GMACs with a 1000-way linear layer (the specification).
SIZES = {
    1.0: (23_454_912, 53_120, 25_557_032, 4.0892),
    0.75: (13_195_152, 39_840, 14_771_992, 2.3227),
    0.5: (5_866_080, 26_560, 6_917_640, 1.0523),
    0.25: (1_467_696, 13_280, 1_993_976, 0.2781)}
BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    **{
        6 * n + 2: (n, n, n) for n in (3, 5, 7, 9, 18)}}


def count(depth, width, base=64, size=224, cifar=False):
    """(Weights of convolutions, affine parameters, MACs), from the paper.

    It shares no code with the package: channels and pixels of every
    convolution are written out from the description of the networks.
    """
    bottleneck = depth in (50, 101, 152)
    stem = round(base * width)
    size = size if cifar else size // 2
    convs = [(3, stem, 3 if cifar else 7, size)]
    before, size = stem, size if cifar else size // 2
    for stage, blocks in enumerate(BLOCKS[depth]):
        middle = round(base * 2**stage * width)
        after = 4 * middle if bottleneck else middle
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            inner, size = size, size // stride
            if bottleneck:
                convs += [(before, middle, 1, inner),
                          (middle, middle, 3, size), (middle, after, 1, size)]
            else:
                convs += [(before, middle, 3, size), (middle, after, 3, size)]
            if stride > 1 or before != after:
                convs.append((before, after, 1, size))
            before = after
    weights = [c_in * c_out * k * k for c_in, c_out, k, _ in convs]
    return (sum(weights), sum(2 * c_out for _, c_out, _, _ in convs),
            sum(w * s * s for w, (*_, s) in zip(weights, convs)))


def affine_and_rest(network):
    """Numbers of parameters of norms, and of all else."""
    norms = sum(p.numel() for m in network.modules()
                if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    return norms, sum(p.numel() for p in network.parameters()) - norms


@pytest.fixture(scope='module')
def resnet50():
    return SlimmableResNet(50, norm_cfg=NORMS)


def test_sizes_of_resnet_50_by_width(resnet50):
    counted = count_complexity(resnet50, WIDTHS, (224, 224))
    for (width, expected), (subnet, own) in zip(SIZES.items(),
                                                counted.items()):
        convs, norms, params, gmacs = expected
        features = resnet50.feature_channels(width)[-1]
        assert subnet.width == width and features == 2048 * width
        assert count(50, width)[:2] == (convs, norms)
        assert affine_and_rest(slice_network(resnet50,
                                             width)) == (norms, convs)
        assert own.params == convs + norms
        assert own.params + 1000 * (features + 1) == params
        macs = own.macs + 1000 * features
        assert macs == count(50, width)[2] + 1000 * features
        assert round(macs / 1e9, 4) == gmacs


def test_four_widths_of_resnet_50_are_stored_once(resnet50):
    stored = sum(p.numel() for p in resnet50.parameters())
    assert stored == 23_587_712 == 23_454_912 + 132_800


@pytest.mark.parametrize('depth', BLOCKS)
def test_sizes_of_all_depths_and_stems(depth):
    classes = {SlimmableResNet: 64, SlimmableResNet_CIFAR: 32}
    for cls, size in classes.items():
        cifar = cls is SlimmableResNet_CIFAR
        if len(BLOCKS[depth]) == 3 and not cifar:
            with pytest.raises(ValueError, match=r'has the depths .* got'):
                cls(depth)
            continue
        network = cls(depth, base_channels=32, stem_channels=32,
                      norm_cfg=NORMS)
        for width in (1.0, 0.25):
            convs, norms, macs = count(depth, width, 32, size, cifar)
            own = count_complexity(network, [width], (size, size))
            (own, ) = own.values()
            assert (own.params, own.macs) == (convs + norms, macs)


@pytest.mark.parametrize('cls, depth', [(SlimmableResNet, 50),
                                        (SlimmableResNet_CIFAR, 20)])
@pytest.mark.parametrize('width', WIDTHS)
def test_a_width_is_an_ordinary_network_with_its_own_norms(cls, depth, width):
    network = randomise(
        cls(depth, base_channels=32, stem_channels=32, norm_cfg=NORMS))
    images = torch.rand(4, 3, 32, 32)
    network.train()
    with at_width(network, width), torch.no_grad():
        network(images)  # running statistics
    network.eval()
    sliced = slice_network(network, width)
    arguments = plain_arguments(network, width)
    if depth == 20:  # MMPretrain has no such depth
        assert arguments is None
        plain = cls(depth, base_channels=32, stem_channels=32, width=width)
    else:
        plain = ResNet(**arguments)
    plain.load_state_dict(sliced.state_dict(), strict=True)
    plain.eval()
    with at_width(network, width), torch.no_grad():
        expected = network(images)
    torch.testing.assert_close(plain(images), expected, rtol=0, atol=0)


def test_resnet_20_has_the_defaults_of_three_stages():
    network = SlimmableResNet_CIFAR(20, base_channels=16, stem_channels=16)
    assert [len(getattr(network, name))
            for name in network.res_layers] == [3, 3, 3]
    assert network.feature_channels() == (64, )
    assert sum(p.numel() for p in network.parameters()) == sum(
        count(20, 1.0, 16, 32, True)[:2])
    features, = network.train()(torch.rand(2, 3, 32, 32))
    assert features.shape == (2, 64, 8, 8)
    assert SlimmableResNet_CIFAR(20).feature_channels(0.5) == (128, )


def test_a_file_of_resnet_20_names_our_class():
    network = SlimmableResNet_CIFAR(20, norm_cfg=NORMS).eval()
    plain = slice_network(network, 0.5)
    arguments, is_stock = consumer_arguments(
        SlicedNetwork(network, plain, Subnet(0.5), 32, 'out.pth', {}))
    assert not is_stock
    MODELS.build(arguments).load_state_dict(plain.state_dict())
    with pytest.raises(KeyError, match='invalid depth 20'):
        ResNet_CIFAR(20)
