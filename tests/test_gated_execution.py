# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A gated network that computes only the channels that are on."""
import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models import ResNet
from torch.utils.flop_counter import FlopCounterMode

from us3l_mm.evaluation import width_latency
from us3l_mm.evaluation.latency import latency
from us3l_mm.models import ActiveChannels, GatedResNet, GatedResNet_CIFAR, at
from us3l_mm.models.layers import (SwitchableGate, active_counts,
                                   set_threshold)

SMALL = dict(base_channels=16, stem_channels=16)


def images(count=1, pixels=40, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, pixels, pixels, generator=draw)


def varied(make=GatedResNet, depth=18, **kwargs):
    """With statistics and masks that differ from image to image."""
    torch.manual_seed(0)
    network = make(depth, **SMALL, **kwargs)
    for module in network.modules():
        if hasattr(module, 'momentum'):
            module.momentum = 1.0
        if isinstance(module, SwitchableGate):
            torch.nn.init.normal_(module.conv2.weight)
    for mode in ('dense', 'gated'):
        with torch.no_grad(), at(network.train(), mode):
            network(images(16))
    return network.eval()


@torch.no_grad()
def masked(network, batch):
    """What the network does with masks, and its masks."""
    with at(network, 'gated'):
        return network.forward_gated(batch)


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5),
                                              (torch.float64, 1e-12)])
@pytest.mark.parametrize('make, depth', [(GatedResNet, 18), (GatedResNet, 50),
                                         (GatedResNet_CIFAR, 34)])
@pytest.mark.parametrize('norm', ['SwitchableBN', 'BN'])
def test_it_computes_what_masks_do(make, depth, norm, dtype, tolerance):
    network = varied(make, depth, norm_cfg=dict(type=norm),
                     out_indices=(0, 2, 3)).to(dtype)
    run = ActiveChannels(network)
    for count in (1, 1, 3):  # three images have other masks each
        batch = images(count, seed=count).to(dtype)
        expected, gatings = masked(network, batch)
        if count > 1:
            assert any(g.mask[0].ne(g.mask[1]).any() for g in gatings)
        found = run(batch)
        assert len(found) == len(expected) == 3
        for there, here in zip(found, expected):
            scale = here.abs().max()
            torch.testing.assert_close(there / scale, here / scale, rtol=0,
                                       atol=tolerance)
            assert not there.requires_grad


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('threshold', [0.0, 1.0])
def test_it_computes_as_much_as_is_counted(depth, threshold):
    """PyTorch's counter of what is executed, against the formula."""
    network = varied(depth=depth)
    set_threshold(network, threshold)
    run, batch = ActiveChannels(network), images()
    _, gatings = masked(network, batch)
    counts = active_counts(gatings)
    assert 0 < counts.min()
    expected = network.compute((40, 40)).macs(counts)
    with FlopCounterMode(display=False) as counter:
        run(batch)
    assert counter.get_total_flops() // 2 == int(expected)
    # Twice the same image, twice the work; the masks agree.
    with FlopCounterMode(display=False) as counter:
        run(batch.repeat(2, 1, 1, 1))
    assert counter.get_total_flops() // 2 == 2 * int(expected)


@pytest.mark.parametrize('threshold', [float('inf'), float('-inf')])
def test_no_channel_and_all_of_them(threshold):
    network = varied(depth=50)
    set_threshold(network, threshold)
    batch = images(2)
    (expected, ), gatings = masked(network, batch)
    assert all((g.mask == (threshold < 0)).all() for g in gatings)
    found, = ActiveChannels(network)(batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_neither_network_nor_images_are_changed():
    network, batch = varied(), images()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    run, copy = ActiveChannels(network), batch.clone()
    first = run(batch)[0]
    assert torch.equal(batch, copy)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    with torch.no_grad():
        network.conv1.weight.mul_(2)  # does not reach the copy
    assert torch.equal(run(batch)[0], first)


def test_it_is_for_inference():
    run = ActiveChannels(varied())
    assert not run.training and not run.network.training
    with pytest.raises(ValueError, match='Train the network itself'):
        run.train()
    assert run.eval() is run
    with pytest.raises(ValueError, match='ResNet has no gates'):
        ActiveChannels(ResNet(18, **SMALL))


# Latency ---------------------------------------------------------------------


def test_the_latency_of_a_gated_network_is_that_of_its_active_channels(
        monkeypatch):
    """And of the given images, one by one."""
    network, seen = varied(), []
    forward = ActiveChannels.forward

    def seeing(self, batch):
        seen.append(batch)
        return forward(self, batch)

    monkeypatch.setattr(ActiveChannels, 'forward', seeing)
    few = images(3)
    assert width_latency(network, 'gated', (40, 40), images=few,
                         min_run_time=0.01) > 0
    assert {len(batch) for batch in seen} == {1}
    assert {batch.data_ptr()
            for batch in seen} == {image.data_ptr() for image in few}
    seen.clear()
    assert width_latency(network, 'gated', (24, 32), batch_size=2,
                         min_run_time=0.01) > 0
    assert {tuple(batch.shape) for batch in seen} == {(2, 3, 24, 32)}
    seen.clear()
    assert width_latency(network, 'dense', (40, 40), min_run_time=0.01) > 0
    assert not seen


def test_latency_is_the_mean_of_the_batches():
    """Images of 256 times the pixels take many times as long."""
    network = torch.nn.Conv2d(3, 8, 3).eval()
    small, large = (latency(network, F.interpolate(images(4), pixels),
                            min_run_time=0.02) for pixels in (16, 256))
    assert large > 4 * small
