# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What gates leave on, and thresholds that meet any budget."""
import pytest
import torch
from mmpretrain.models import ResNet

from us3l_mm.evaluation import (calibrate_threshold, extract_features,
                                measure_gates, width_latency)
from us3l_mm.models import GatedResNet, at
from us3l_mm.models.layers import FULL, GATED, SwitchableGate, set_threshold


def trained_like(depth=18):
    """With measured statistics, so that logits differ from image to image."""
    torch.manual_seed(0)
    network = GatedResNet(depth, base_channels=16, stem_channels=16)
    for module in network.modules():
        if hasattr(module, 'momentum'):
            module.momentum = 1.0
        if isinstance(module, SwitchableGate):
            torch.nn.init.normal_(module.conv2.weight)
    for mode in ('dense', 'gated'):
        with torch.no_grad(), at(network.train(), mode):
            network(torch.cat(batches()))
    return network.eval()


def batches():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(n, 3, 32, 32, generator=draw) for n in (16, 5, 11)]


def test_the_use_of_gates_is_that_of_each_image():
    network = trained_like()
    use = measure_gates(network.train(), batches())
    assert network.training and not network.blocks['layer1.0'].gate1.width < 1
    network.eval()
    compute = network.compute((32, 32))
    masks = [[] for _ in range(8)]
    with torch.no_grad(), at(network, 'gated'):
        for image in torch.cat(batches()).split(1):
            for seen, gating in zip(masks, network.forward_gated(image)[1]):
                seen.append(gating.mask)
    masks = [torch.cat(rows) for rows in masks]
    counts = torch.stack([mask.sum(1) for mask in masks], 1)
    assert use.ratio == pytest.approx(
        float(compute.macs(counts).mean()) / compute.total)
    for name, mask in zip(compute.names, masks):
        torch.testing.assert_close(use.shares[name], mask.mean(0))
        assert use.density[name] == pytest.approx(float(mask.mean()))
        off = sum(not column.any() for column in mask.T)
        on = sum(bool(column.all()) for column in mask.T)
        assert use.kinds[name] == (off, on, mask.shape[1] - off - on)
    assert any(kinds[2] for kinds in use.kinds.values())


@pytest.mark.parametrize('depth, target', [(18, 0.4), (18, 0.9), (50, 0.5)])
def test_one_checkpoint_meets_any_budget(depth, target):
    network = trained_like(depth)
    threshold = calibrate_threshold(network, batches(), target)
    assert measure_gates(network, batches()).ratio == pytest.approx(
        target, rel=0.01)
    # The threshold is part of the weights.
    again = trained_like(depth)
    again.load_state_dict(network.state_dict())
    assert measure_gates(again, batches()).ratio == pytest.approx(
        target, rel=0.01)
    if target == 0.4:
        assert threshold > calibrate_threshold(network, batches(), 0.9)


def test_thresholds_at_the_ends_leave_all_channels_on_or_none():
    network = trained_like()
    compute = network.compute((32, 32))
    set_threshold(network, float('inf'))
    use = measure_gates(network, batches())
    assert use.ratio == pytest.approx(compute.floor)
    assert all(kinds[1:] == (0, 0) for kinds in use.kinds.values())
    set_threshold(network, float('-inf'))
    use = measure_gates(network, batches())
    everything = float(compute.ratio(compute.channels[None]))
    assert use.ratio == pytest.approx(everything) and everything > 1
    with pytest.raises(ValueError, match='got nan'):
        set_threshold(network, float('nan'))


def test_budgets_that_cannot_be_met_are_explained():
    network = trained_like()
    set_threshold(network, 0.25)
    with pytest.raises(ValueError, match='Use a target between'):
        calibrate_threshold(network, batches(), 0.01)
    with pytest.raises(ValueError, match='got 0'):
        calibrate_threshold(network, batches(), 0.3, tolerance=0)
    with pytest.raises(ValueError, match='nearest ratio is'):
        calibrate_threshold(network, batches()[1:2], 0.3, tolerance=1e-7)
    thresholds = [block.gate1.threshold for block in network.blocks.values()]
    assert thresholds == [0.25] * 8
    with pytest.raises(ValueError, match='ResNet has no gates'):
        measure_gates(ResNet(18), batches())
    with pytest.raises(ValueError, match='read more than once'):
        calibrate_threshold(network, iter(batches()), 0.3)


def test_the_evaluation_of_widths_takes_both_modes():
    network = trained_like()
    data = [(images, torch.arange(len(images)) % 3) for images in batches()]
    features, labels = extract_features(network, data, ['dense', 'gated'])
    assert [*features] == [FULL, GATED] and len(labels) == 32
    for subnet, found in features.items():
        with torch.no_grad(), at(network, subnet):
            expected = network(torch.cat(batches()))[-1].mean((2, 3))
        torch.testing.assert_close(torch.from_numpy(found), expected)
    assert (features[FULL] != features[GATED]).any()
    assert width_latency(network, 'gated', (32, 32), min_run_time=.01) > 0
