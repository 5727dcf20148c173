# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What a sub-network is, and that setting one leaves nothing behind."""
import math
import random

import pytest
import torch
from algorithms import small_algorithm
from torch import nn

from us3l_mm.models.backbones import SlimmableResNet_CIFAR
from us3l_mm.models.layers import (
    KeepsOwnSubnet, SlimmableBatchNorm2d, SlimmableConv2d, SlimmableLinear,
    Subnet, SwitchableBatchNorm2d, active_channels, at, at_width,
    check_width_range, make_divisible, set_subnet, slimmable_layers,
    subnet_list, subnets_of)
from us3l_mm.models.selfsup import Teacher

CHANNELS = [3, 8, 16, 20, 24, 64, 96, 100, 128, 256, 320, 512, 1280, 2048]


def naive_divisible(value, divisor=8, min_value=1):
    """The sentence of the specification, without integer tricks."""
    below = math.floor(value / divisor) * divisor
    above = below + divisor
    nearest = above if above - value <= value - below else below
    nearest = max(nearest, min_value)
    return nearest + divisor if nearest < 0.9 * value else nearest


@pytest.mark.parametrize('divisor, min_value', [(8, 1), (8, 8), (4, 1),
                                                (16, 16), (8, 24)])
def test_make_divisible_rounds_like_its_definition(divisor, min_value):
    values = [i / 16 for i in range(1, 4000)] + list(range(250, 2100))
    for value in values:
        assert make_divisible(value, divisor, min_value) == naive_divisible(
            value, divisor, min_value), value


def test_make_divisible_of_known_values():
    # Half goes up; 18 would lose 11 % at 16, 35.9 would lose 10.9 % at 32.
    known = {
        4: 8,
        8: 8,
        12: 16,
        17.7: 16,
        18: 24,
        20: 24,
        35.4: 32,
        35.9: 40,
        44: 48,
        99: 96,
        100: 104,
        2047: 2048}
    assert {v: make_divisible(v) for v in known} == known


@pytest.mark.parametrize('channels', CHANNELS)
@pytest.mark.parametrize('ratio', [1, 6])
def test_active_channels_are_whole_groups_and_grow_with_the_width(
        channels, ratio):
    channels *= ratio
    draw = random.Random(channels)
    widths = sorted([i / 512 for i in range(1, 513)] +
                    [1 - draw.random() for _ in range(300)])
    active = [active_channels(channels, w, ratio=ratio) for w in widths]
    assert active == sorted(active)
    assert active[-1] == channels
    for c in active:
        assert c <= channels
        assert c == channels or c % (8 * ratio) == 0
        assert c >= min(channels, 8 * ratio)


@pytest.mark.parametrize('k', range(1, 9))
def test_a_width_of_k_eighths_is_that_share_of_64_channels(k):
    for channels in (64, 128, 256, 512, 1024, 2048):
        assert active_channels(channels, k / 8) == channels * k // 8


# A sub-network as a value ----------------------------------------------------


def test_a_sub_network_from_whatever_names_it():
    half = Subnet(0.5)
    for value in (half, 0.5, '0.5', '.5', 'w0.50', 'w0500000', ' W0.5 '):
        assert Subnet.of(value) == half
    for value in (1, 1.0, '1', 'w1.00', 'full', 'dense', Subnet()):
        assert Subnet.of(value) == Subnet(1.0, gated=False)
    for value in ('gated', 'full_gated', Subnet(gated=True)):
        assert Subnet.of(value) == Subnet(1.0, gated=True)
    assert Subnet.of('w0.28125_gated') == Subnet(0.28125, gated=True)
    assert Subnet.of('1e-3') == Subnet(0.001)


def test_names_and_keys_come_back():
    for subnet in (Subnet(), Subnet(gated=True), Subnet(0.5), Subnet(0.28125),
                   Subnet(1 / 3), Subnet(0.5, True), Subnet(0.000001),
                   Subnet(0.999999)):
        assert Subnet.of(str(subnet)) == subnet
        assert Subnet.of(subnet.key or 'full') == subnet


def test_names_and_keys_of_known_sub_networks():
    known = {
        Subnet(): ('', 'w1.00'),
        Subnet(0.5): ('w0500000', 'w0.50'),
        Subnet(0.28125): ('w0281250', 'w0.28125'),
        Subnet(1 / 3): ('w0333333', 'w0.333333'),
        Subnet(gated=True): ('gated', 'gated'),
        Subnet(0.5, True): ('w0500000_gated', 'w0.50_gated')}
    assert {s: (s.key, str(s)) for s in known} == known
    assert [s.is_full for s in known] == [True] + [False] * 5


def test_widths_are_equal_to_a_millionth():
    assert Subnet(1 / 3) == Subnet(0.333333) == Subnet(0.3333334)
    assert len({Subnet(1 / 3), Subnet(0.333333)}) == 1
    assert Subnet(0.333333) != Subnet(0.333335)
    assert Subnet(0.1 + 0.2) == Subnet(0.3) and 0.1 + 0.2 != 0.3
    assert Subnet(0.9999999).is_full and Subnet(1 - 1e-6) != Subnet()
    for k in range(1, 65):  # reading a key does not land on another width
        width = k / 64
        assert Subnet.of(Subnet(width).key or 'full') == Subnet(width)
        assert abs(Subnet(width).width - width) <= 1e-12
        for channels in (64, 512, 2048):
            assert active_channels(channels,
                                   Subnet(width).width) == (active_channels(
                                       channels, width))


def test_a_sub_network_cannot_be_changed():
    with pytest.raises(AttributeError):
        Subnet(0.5).width = 1.0


def test_a_width_outside_of_a_range_is_refused():
    for width in (0.25, 0.5, 0.75, 1 / 4, 0.75000001):
        assert Subnet(width).check((0.25, 0.75)) == Subnet(width)
    assert Subnet(0.3333333).check((1 / 3, 1.0)) == Subnet(1 / 3)
    for width in (0.249, 0.751, 1.0):
        with pytest.raises(
                ValueError, match=rf'Width {width:g} is outside the'
                r' range \[0\.25, 0\.75\].*width_range'):
            Subnet(width).check((0.25, 0.75))


def test_a_list_is_sorted_and_names_each_once():
    assert subnet_list(['0.5', 'gated', 0.25, 'dense']) == [
        Subnet(), Subnet(gated=True),
        Subnet(0.5), Subnet(0.25)]
    for bad in ([], [0.5, 'w0.50'], [1 / 3, 0.333333]):
        with pytest.raises(ValueError, match='at least one, each named once'):
            subnet_list(bad)


def test_the_sub_networks_of_a_network_are_those_of_all_its_norms():
    assert subnets_of(nn.Linear(2, 2)) is None
    assert subnets_of(SlimmableResNet_CIFAR(18, base_channels=16)) is None
    two = SwitchableBatchNorm2d(16, [1.0, 0.5])
    three = SwitchableBatchNorm2d(16, [0.25, 1.0, 0.5])
    assert subnets_of(three) == [Subnet(), Subnet(0.5), Subnet(0.25)]
    assert subnets_of(nn.Sequential(three, two)) == [Subnet(), Subnet(0.5)]
    assert subnets_of(SwitchableBatchNorm2d(16, ['gated', 'dense'])) == [
        Subnet(), Subnet(gated=True)]


def test_gates_are_a_mode_of_the_layers_that_have_them():
    norm = SwitchableBatchNorm2d(16, ['dense', 'gated']).train()
    x = torch.randn(4, 16, 3, 3)
    with at(norm, 'gated'):
        assert norm.subnet == Subnet(gated=True) and norm.width == 1.0
        norm(x)
    assert norm.num_batches_tracked == 0
    assert norm.gated.num_batches_tracked == 1
    with pytest.raises(ValueError, match='is no gated sub-network'):
        set_subnet([SlimmableConv2d(16, 16, 1), norm], 'gated')
    assert norm.subnet.is_full


# Setting one -----------------------------------------------------------------


class Outer(nn.Module):
    """Slimmable layers, some inside a module that keeps its own width."""

    def __init__(self):
        super().__init__()
        self.first = SlimmableConv2d(16, 32, 3)
        self.inner = nn.Sequential(SlimmableBatchNorm2d(32),
                                   SlimmableLinear(32, 64))

        class Keeper(KeepsOwnSubnet, nn.Sequential):
            pass

        self.keeper = Keeper(SlimmableConv2d(16, 32, 3))

    def widths(self):
        return [layer.width for layer in slimmable_layers(self)]

    def channels(self):
        return (self.first.active_in, self.first.active_out,
                self.inner[0].active_features, self.inner[1].active_in,
                self.inner[1].active_out)


FULL, HALF, QUARTER = ((16, 32, 32, 32, 64), (8, 16, 16, 16, 32), (8, 8, 8, 8,
                                                                   16))


def test_at_width_sets_nests_and_restores():
    net = Outer()
    assert net.channels() == FULL
    with at_width(net, 0.5):
        assert net.channels() == HALF
        with at_width(net, 0.25):
            assert net.channels() == QUARTER
        assert net.channels() == HALF
        with at_width(net, 1.0):
            assert net.channels() == FULL
        assert net.channels() == HALF
    assert net.channels() == FULL


def test_at_width_restores_after_an_exception():
    net = Outer()
    set_subnet(net, 0.5)
    with pytest.raises(KeyError):
        with at_width(net, 0.25):
            raise KeyError
    assert net.channels() == HALF and net.widths() == [0.5] * 3


def test_at_width_restores_each_layers_own_width():
    net = Outer()
    set_subnet(net.first, 0.25)
    set_subnet(net.inner, 0.5)
    before = net.channels()
    with at_width([net.first, net], 1.0):
        assert net.channels() == FULL
    assert net.widths() == [0.25, 0.5, 0.5] and net.channels() == before


def test_a_keeper_is_reached_only_when_it_is_named_itself():
    net = Outer()
    with at_width(nn.ModuleList([net]), 0.5):
        assert net.channels() == HALF
        assert net.keeper[0].width == 1.0 and net.keeper[0].active_in == 16
        with at_width(net.keeper, 0.25):
            assert net.keeper[0].active_in == 8 and net.channels() == HALF
    assert net.keeper[0].active_in == 16


def test_narrowing_an_algorithm_never_reaches_its_teacher():
    algorithm = small_algorithm()
    of_teacher = [
        m for m in algorithm.teacher.modules() if hasattr(m, 'on_subnet')]
    of_student = list(slimmable_layers(algorithm))
    assert isinstance(algorithm.teacher, Teacher) and len(of_teacher) > 30
    assert not set(map(id, of_teacher)) & set(map(id, of_student))
    for wrapped in (algorithm, nn.ModuleDict(dict(module=algorithm))):
        with at_width(wrapped, 0.5):
            assert {m.width for m in of_teacher} == {1.0}
            assert {m.width for m in of_student} == {0.5}
    with at_width(algorithm, 0.5):  # and back from the teacher's own width
        algorithm.teacher([torch.rand(2, 3, 8, 8).double()] * 2, 1.0)
        assert {m.width for m in of_student} == {0.5}


BAD = [
    (0, ValueError, r'multiplier in \(0, 1\], got 0\.0'),
    (-0.5, ValueError, r'multiplier in \(0, 1\], got -0\.5'),
    (1.5, ValueError, r'multiplier in \(0, 1\], got 1\.5'),
    (math.nan, ValueError, r'multiplier in \(0, 1\], got nan'),
    (math.inf, ValueError, r'multiplier in \(0, 1\], got inf'),
    ('half', ValueError, r"is a width such as 0\.5, or one of full, dense and "
     r"gated, got 'half'"),
    ('', ValueError, "full, dense and gated, got ''"),
    ('1.5', ValueError, r'multiplier in \(0, 1\], got 1\.5'),
    (Subnet(0.5,
            gated=True), ValueError, 'has no gates, so there is no gated'),
    (None, TypeError, 'got None of type NoneType'),
    (True, TypeError, 'got True of type bool'),
    ([0.5], TypeError, r'got \[0\.5\] of type list'),
    (0.2, ValueError, r'0\.2 is outside the range \[0\.25, 0\.75\]'),
    (0.8, ValueError, r'0\.8 is outside the range \[0\.25, 0\.75\].*'
     'width_range'), ]


@pytest.mark.parametrize('width, error, message', BAD, ids=[
    str(case[0]) for case in BAD])
def test_a_width_that_is_not_allowed_changes_nothing(width, error, message):
    net = SlimmableResNet_CIFAR(18, base_channels=16, stem_channels=16,
                                width_range=(0.25, 0.75))
    set_subnet(net, 0.5)
    layers = list(slimmable_layers(net))
    for attempt in (lambda: set_subnet([nn.Identity(), net], width),
                    lambda: at_width(net, width).__enter__()):
        with pytest.raises(error, match=message):
            attempt()
        assert {layer.width for layer in layers} == {0.5}
        assert layers[0].active_out == 8


def test_a_width_refused_by_one_layer_changes_no_other():
    net = SlimmableResNet_CIFAR(
        18, base_channels=16, stem_channels=16, norm_cfg=dict(
            type='SwitchableBN', widths=[1.0, 0.5]))
    x = torch.rand(2, 3, 8, 8)
    for attempt in (lambda: set_subnet(net, 0.75),
                    lambda: at_width(net, 0.75).__enter__()):
        with pytest.raises(ValueError,
                           match=r'no batch norm of its own for w0\.75'):
            attempt()
        assert {layer.width for layer in slimmable_layers(net)} == {1.0}
        assert net(x)[-1].shape == (2, 128, 1, 1)


@pytest.mark.parametrize('pair, message', [((0.0, 1.0), r'\(0, 1\], got 0\.0'),
                                           ((0.5, 0.25), 'lowest, highest'),
                                           (0.5, 'a pair'),
                                           ((0.25, 0.5, 1.0), 'a pair')],
                         ids=str)
def test_a_bad_width_range_is_refused_when_the_network_is_built(pair, message):
    with pytest.raises(ValueError, match=message):
        SlimmableResNet_CIFAR(18, base_channels=16, stem_channels=16,
                              width_range=pair)
    with pytest.raises(ValueError, match=message):
        check_width_range(pair)
