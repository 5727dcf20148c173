# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Measured statistics are those of one giant batch, width by width."""
import random

import numpy as np
import pytest
import torch
from processes import run_processes
from mmengine.registry import init_default_scope
from mmpretrain.models.backbones.resnet import BasicBlock
from small_run import small_cfg
from torch import nn

from us3l_mm.evaluation import calibrate
from us3l_mm.models import SlimmableResNet_CIFAR
from us3l_mm.models.layers import (
    FULL, SlimmableBatchNorm1d, SlimmableBatchNorm2d, SlimmableConv2d,
    SlimmableLinear, Subnet, at, slimmable_layers)
from us3l_mm.registry import MODELS

WIDTHS = [1.0, 0.75, 0.3]


def one_layer(dims):
    """A norm whose input does not depend on what else is in the batch."""
    torch.manual_seed(0)
    if dims == 2:
        return nn.Sequential(SlimmableConv2d(3, 32, 3, slice_in=False),
                             SlimmableBatchNorm2d(32))
    return nn.Sequential(nn.Flatten(), SlimmableLinear(192, 32,
                                                       slice_in=False),
                         SlimmableBatchNorm1d(32))


def small_resnet(**options):
    torch.manual_seed(0)
    return SlimmableResNet_CIFAR(depth=18, base_channels=16, stem_channels=16,
                                 **options)


def uneven_batches(sizes=(5, 1, 8, 3, 1), seed=0):
    """Batches whose means differ, so that averaging variances is wrong."""
    g = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, 3, 8, 8, generator=g) * (i + 1) + 3 * i
        for i, n in enumerate(sizes)]


def norms_of(network):
    return [
        layer for layer in slimmable_layers(network)
        if isinstance(layer, (SlimmableBatchNorm1d, SlimmableBatchNorm2d))]


def assert_giant_batch(network, images, width):
    """Compare with the library's norm, in float64, on all images at once."""
    *before, norm = network.double()
    with torch.no_grad(), at(network, width):
        x = nn.Sequential(*before)(images.double())
    plain = nn.BatchNorm1d if x.ndim == 2 else nn.BatchNorm2d
    reference = plain(x.shape[1], momentum=1.0).double()
    reference(x)
    mean, var = norm.statistics(width)
    torch.testing.assert_close(mean, reference.running_mean, rtol=1e-6,
                               atol=1e-6)
    torch.testing.assert_close(var, reference.running_var, rtol=1e-6,
                               atol=1e-6)


@pytest.mark.parametrize('sizes', [(5, 1, 8, 3, 1), (1, 4, 4), (9, )])
@pytest.mark.parametrize('dims', [1, 2])
def test_statistics_are_those_of_one_giant_batch(dims, sizes):
    network, batches = one_layer(dims), uneven_batches(sizes)
    assert calibrate(network, batches, WIDTHS) == sum(sizes)
    for width in WIDTHS:
        assert_giant_batch(network, torch.cat(batches), width)


def test_a_running_average_is_that_of_a_plain_norm():
    """The authors of US3L calibrate so, with a momentum of 0.1."""
    network, batches = one_layer(2).double(), [
        images.double() for images in uneven_batches((5, 4, 8, 3))]
    calibrate(network, batches, WIDTHS, momentum=0.1)
    for width in WIDTHS:
        with at(network, width), torch.no_grad():
            inputs = [network[0](images) for images in batches]
            plain = nn.BatchNorm2d(inputs[0].shape[1]).double()
            for x in inputs:
                plain(x)
            torch.testing.assert_close(network.eval()(batches[0]),
                                       plain.eval()(inputs[0]))
    for momentum in (0, 1.5, float('nan')):
        with pytest.raises(ValueError, match=r'momentum .* is in \(0, 1\]'):
            calibrate(network, batches, WIDTHS, momentum=momentum)


def test_only_so_many_images_are_counted():
    network, batches = one_layer(2), uneven_batches()
    assert calibrate(network, iter(batches), [0.5], num_images=9) == 9
    assert_giant_batch(network, torch.cat(batches)[:9], 0.5)


def test_one_pass_for_all_widths_equals_a_pass_for_each():
    together, one_by_one = small_resnet(), small_resnet()
    batches = uneven_batches()
    calibrate(together, iter(batches), WIDTHS)
    for width in WIDTHS:
        calibrate(one_by_one, iter(batches), [width])
    expected = one_by_one.state_dict()
    assert together.state_dict().keys() == expected.keys()
    assert len(expected) > len(small_resnet().state_dict())
    for name, value in together.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_nothing_else_changes():
    network = small_resnet()
    calibrate(network, uneven_batches(seed=1), [1.0, 0.5])
    network.layer1.eval()
    network.layer2.train()
    modes = [m.training for m in network.modules()]
    before = {k: v.clone() for k, v in network.state_dict().items()}
    states = [
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist()]
    with at(network, 0.75):
        calibrate(network, uneven_batches(), [0.25])
        assert {layer.subnet
                for layer in slimmable_layers(network)} == {Subnet(0.75)}
    assert [m.training for m in network.modules()] == modes
    assert states == [
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist()]
    after = network.state_dict()
    assert any('_w0250000' in name for name in after)
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert not any(m._forward_pre_hooks for m in network.modules())


def test_a_loader_that_breaks_leaves_the_network_as_it_was():
    network = small_resnet().train()
    calibrate(network, uneven_batches(), [0.5])
    before = {k: v.clone() for k, v in network.state_dict().items()}

    def broken():
        yield from uneven_batches(seed=1)
        raise OSError('the disk has gone')

    with pytest.raises(OSError, match='the disk has gone'):
        calibrate(network, broken(), [0.5, 0.75])
    assert all(m.training for m in network.modules())
    assert {layer.subnet for layer in slimmable_layers(network)} == {FULL}
    assert not any(m._forward_pre_hooks for m in network.modules())
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_dropout_and_drop_path_are_off():
    plain, dropping = small_resnet(), small_resnet(drop_path_rate=0.9)
    dropping.conv1 = nn.Sequential(dropping.conv1, nn.Dropout(0.9))
    assert any(
        type(m.drop_path).__name__ == 'DropPath' for m in dropping.modules()
        if isinstance(m, BasicBlock))
    batches = uneven_batches()
    calibrate(plain, batches, [0.5])
    calibrate(dropping, batches, [0.5])
    for ours, theirs in zip(norms_of(plain), norms_of(dropping)):
        for a, b in zip(ours.statistics(0.5), theirs.statistics(0.5)):
            assert torch.equal(a, b)


def test_a_width_without_statistics_refuses():
    network = small_resnet().eval()
    calibrate(network, uneven_batches(), [0.5])
    with torch.no_grad(), at(network, 0.5):
        assert network(torch.rand(1, 3, 8, 8))[-1].isfinite().all()
    with at(network, 0.25), pytest.raises(
            ValueError, match='for w0.25; measured are: w0.50.*calibrate'):
        network(torch.rand(1, 3, 8, 8))


def test_statistics_travel_in_the_state_dict():
    source, target = small_resnet().eval(), small_resnet().eval()
    calibrate(source, uneven_batches(), WIDTHS)
    target.load_state_dict(source.state_dict())
    x = torch.rand(2, 3, 8, 8)
    for width in WIDTHS:
        with torch.no_grad(), at([source, target], width):
            assert torch.equal(source(x)[-1], target(x)[-1])


def test_a_teacher_is_not_reached():
    init_default_scope('mmpretrain')
    algorithm = MODELS.build(small_cfg('unused').model)
    calibrate(algorithm, uneven_batches(), [1.0])
    assert all(norm.measured_subnets() == [FULL]
               for norm in norms_of(algorithm.backbone))
    for part in (algorithm.teacher.backbone, algorithm.teacher.neck):
        assert not any(norm.measured_subnets() for norm in norms_of(part))


def test_networks_with_statistics_of_their_own_need_no_images():
    network = small_resnet(
        norm_cfg=dict(type='SwitchableBN', widths=[1.0, 0.5]))

    def unread():
        raise AssertionError('nobody should ask for images')
        yield

    assert calibrate(network, unread(), [0.5]) == 0
    with pytest.raises(ValueError, match='no batch norm of its own'):
        calibrate(network, unread(), [0.75])


@pytest.mark.parametrize('images, arguments, message', [
    ([], {}, 'at least two images, got 0: is the loader empty'),
    ([1], {}, 'at least two images, got 0'),
    ([4], dict(num_images=1), 'at least two images, got num_images=1'),
    ([4], dict(num_images=2.5), 'at least two images, got num_images=2.5'),
    ([4], dict(num_images=True), 'at least two images, got num_images=True'),
    ([4], dict(subnets=[0.1]), 'Width 0.1 is outside the range'),
    ([4], dict(subnets=[0.5, 1.5]), r'multiplier in \(0, 1\], got 1.5'), ])
def test_what_cannot_be_measured_is_refused(images, arguments, message):
    network = small_resnet()
    with pytest.raises(ValueError, match=message):
        calibrate(network, uneven_batches(images), **{
            'subnets': [0.5],
            **arguments})
    assert not any(norm.measured_subnets() for norm in norms_of(network))


@pytest.mark.parametrize('arguments, message', [
    (dict(subnets=0.5), r'a list of sub-networks, such as \[0.5\], got 0.5'),
    (dict(subnets='w0.50'), r"such as \['w0.50'\]"),
    (dict(network='resnet'), "network is a module.*got 'resnet'"),
    (dict(batches=[dict(inputs=torch.rand(4, 3, 8, 8))]), 'batches are tensors'
     '.*got dict.*image_batches'),
    (dict(batches=[torch.rand(3, 8, 8)]), r'got torch.Size\(\[3, 8, 8\]\)'), ])
def test_arguments_of_another_type_are_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        calibrate(
            **{
                'network': small_resnet(),
                'batches': uneven_batches(),
                'subnets': [0.5],
                **arguments})


def test_images_that_are_not_finite_make_no_statistics():
    network, images = small_resnet(), torch.rand(4, 3, 8, 8)
    bad = images.clone()
    bad[1, 2, 3, 4], bad[3] = float('nan'), float('inf')
    with pytest.raises(
            ValueError, match='2 of the 4 images of batch 2 are not'
            ' finite.*std of 0'):
        calibrate(network, [images, bad, images], [0.5])
    assert not any(norm.measured_subnets() for norm in norms_of(network))
    network.conv1.weight.data[0] = float('nan')
    with pytest.raises(ValueError, match='w0.50 are not finite.*diverged'):
        calibrate(network, [images], [0.5])
    assert not any(norm.measured_subnets() for norm in norms_of(network))


def _calibrate_a_shard(rank, out):
    network, statistics = one_layer(2), {}
    batches = uneven_batches()
    for limit in (None, 7):
        # The second process has three batches, one of them of one image.
        seen = calibrate(
            network,
            batches[rank::2] if limit is None else [torch.cat(batches)], [0.5],
            limit)
        statistics[limit] = seen, network[-1].statistics(0.5)
    torch.save(statistics, f'{out}/{rank}.pth')


@pytest.mark.ddp
def test_processes_with_uneven_shards_measure_what_one_would(tmp_path):
    run_processes(_calibrate_a_shard, 2, tmp_path)
    images = torch.cat(uneven_batches())
    # Of seven images, four are taken by the first process, three by the other.
    for limit, expected in ((None, images), (7,
                                             torch.cat([
                                                 images[:4], images[:3]]))):
        for rank in range(2):
            seen, statistics = torch.load(f'{tmp_path}/{rank}.pth')[limit]
            assert seen == len(expected)
            network = one_layer(2)
            network[-1].set_statistics(0.5, *statistics)
            assert_giant_batch(network, expected, 0.5)
