# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""SlimmableMobileNetV2: one network, many widths, all of them MobileNetV2."""
import random

import naive
import naive_mobilenet
import pytest
import test_train_step
import torch
from algorithms import small_algorithm, student_parameters
from mmpretrain.models import MobileNetV2
from mmpretrain.models.backbones.mobilenet_v2 import InvertedResidual
from test_train_step import RecordingSGD, check_iterations
from torch import nn

from us3l_mm.evaluation import calibrate, count_complexity
from us3l_mm.export import plain_arguments, slice_network
from us3l_mm.models import (SlimmableMobileNetV2, SlimmableMobileNetV2_CIFAR,
                            at_width)
from us3l_mm.models.layers import (FULL, SlimmableBatchNorm, SlimmableLayer,
                                   Subnet)

RNG = random.Random(0)
WIDTHS = [
    0.25, 0.5, 0.75, 1.0, *(round(RNG.uniform(0.25, 1), 6) for _ in range(8))]
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(0))
OUTPUTS = (0, 1, 2, 3, 4, 5, 6, 7)


def measured(network, widths):
    """With scales and statistics that a layer could not have by chance."""
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    calibrate(network, [torch.randn(4, 3, 32, 32)], widths)
    return network.eval()


@pytest.fixture(scope='module')
def full():
    torch.manual_seed(0)
    return measured(SlimmableMobileNetV2(out_indices=OUTPUTS), WIDTHS)


def maps(network, width=None):
    with torch.no_grad():
        if width is None:
            return network(IMAGES)
        with at_width(network, width):
            return network(IMAGES)


def equal(found, expected):
    return len(found) == len(expected) and all(
        map(torch.equal, found, expected))


@pytest.mark.parametrize('factor', [1.0, 0.35, 1.4])
def test_the_full_width_is_the_plain_network(factor):
    networks = []
    for cls in (MobileNetV2, SlimmableMobileNetV2):
        torch.manual_seed(0)
        networks.append(cls(factor, out_indices=OUTPUTS))
        networks[-1].init_weights()
    plain, ours = networks
    weights = plain.state_dict()
    assert list(ours.state_dict()) == list(weights)
    assert all(
        torch.equal(weights[key], value)
        for key, value in ours.state_dict().items())
    plain.train(), ours.train()
    outputs = [network(IMAGES) for network in networks]
    assert equal(*outputs)
    for out in outputs:
        out[-1].square().mean().backward()
    assert all(
        torch.equal(p.grad, q.grad)
        for p, q in zip(plain.parameters(), ours.parameters()))


def test_every_width_is_a_slice_and_a_plain_narrower_network(full):
    for width in WIDTHS:
        sliced = slice_network(full, width)
        assert not any(isinstance(m, SlimmableLayer) for m in sliced.modules())
        expected = maps(full, width)
        assert equal(maps(sliced), expected)
        plain = MobileNetV2(width, out_indices=OUTPUTS)
        plain.eval()
        plain.load_state_dict(sliced.state_dict(), strict=True)
        arguments = plain_arguments(full, width)
        # From 8 channels to 8, a stock network has a shortcut.
        has_shortcut = naive.channels(32, width) == 8
        assert equal(maps(plain), expected) != has_shortcut
        assert arguments == (None if has_shortcut else
                             {} if width == 1 else dict(widen_factor=width))
        # With batch statistics too, and the running ones left alone.
        sliced.train(), full.train()
        assert equal(maps(sliced), maps(full, width))
        full.eval()
        assert sliced.out_channels == full.feature_channels(width)
        assert tuple(m.shape[1] for m in expected) == sliced.out_channels


def test_hidden_channels_are_six_times_the_input_at_every_width():
    network = SlimmableMobileNetV2()
    for step in range(25, 101):
        width = step / 100
        for stage in network.layers[1:-1]:
            for block in getattr(network, stage):
                c_in, hidden = block.conv[0].conv.active(width)
                assert hidden == 6 * c_in == 6 * naive.channels(
                    block.conv[0].conv.in_channels, width)
                assert block.conv[1].conv.active(width) == (hidden, hidden)
                assert block.conv[1].bn.active(width) == hidden
                assert block.conv[2].conv.active(width)[0] == hidden


def test_which_widths_of_a_rounded_network_are_stock_ones():
    """Found by a search; a finer one by hand finds no more of them."""
    network = SlimmableMobileNetV2(0.75)
    by_channels = {}
    for step in range(1, 2049):
        by_channels.setdefault(stock_channels(step / 2048), step / 2048)
    found = {}
    for step in range(8, 33):
        width = step / 32
        wanted = tuple(naive.channels(c, width) for c in stock_channels(0.75))
        arguments = plain_arguments(network, width)
        is_stock = wanted in by_channels and wanted[0] != wanted[1]
        assert (arguments is not None) == is_stock, width
        found[width] = arguments
        if arguments:
            assert stock_channels(arguments['widen_factor']) == wanted
    assert found[1.0] == dict(widen_factor=0.75)
    assert None in found.values()
    # 1280 features become 1792 with a factor of 1.4, and stay in any width.
    large = SlimmableMobileNetV2(1.4)
    assert large.feature_channels(0.5) == (1792, )
    assert plain_arguments(large, 0.5) is None
    assert plain_arguments(large, 1.0) == dict(widen_factor=1.4)
    # A small network at 32 pixels has the strides of no stock class.
    assert plain_arguments(SlimmableMobileNetV2_CIFAR(), 0.5) is None


def stock_channels(factor):
    """Of the stem and the stages, with the rounding of the paper."""
    rounded = []
    for c in (32, *(full for _, full, _, _ in naive_mobilenet.STAGES)):
        nearest = max(8, 8 * int((c * factor + 4) // 8))
        rounded.append(nearest + 8 if nearest < 0.9 * c * factor else nearest)
    return tuple(rounded)


def test_sizes_by_hand():
    widths = WIDTHS[:6]
    counted = count_complexity(SlimmableMobileNetV2(), widths, (224, 224))
    for width in widths:
        size = counted[Subnet(width)]
        assert (size.params, size.macs) == naive_mobilenet.size(width)
    # Without its classifier of 1000 classes, as published (3.50 M)
    assert counted[FULL].params == 3504872 - 1281000


def test_strides_for_small_images():
    network = SlimmableMobileNetV2_CIFAR(out_indices=OUTPUTS)
    assert [m.shape[2]
            for m in network.train()(IMAGES)] == [32, 32, 16, 8, 8, 4, 4, 4]
    assert list(network.state_dict()) == list(MobileNetV2().state_dict())
    calibrate(network, [IMAGES], [0.4])
    torch.testing.assert_close(maps(slice_network(network.eval(), 0.4)),
                               maps(network, 0.4), rtol=0, atol=0)


def close_to_the_largest(actual, expected, what):
    """Rounding grows over 53 norms, so relative to the largest number."""
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual / scale, expected / scale, rtol=0,
                               atol=1e-6, msg=lambda text: f'{what}: {text}')


@pytest.mark.parametrize('update_mode, iterations', [('sequential', 1),
                                                     ('accumulate', 2)])
def test_iterations_equal_the_definition(monkeypatch, update_mode, iterations):
    """Losses, gradients, parameters and teacher, in float64."""
    monkeypatch.setattr(naive, 'resnet18', naive_mobilenet.mobilenet_v2)
    monkeypatch.setattr(test_train_step, 'close', close_to_the_largest)
    algorithm = small_algorithm(
        'simclr_momentum', teacher=dict(momentum=0.1),
        update_mode=update_mode, backbone=dict(
            type='us3l_mm.SlimmableMobileNetV2_CIFAR', widen_factor=1.0))
    named = student_parameters(algorithm)
    trainer = naive.NaiveTrainer(named, 'simclr_momentum', keep=0.9, lr=0.01,
                                 update_mode=update_mode)
    # Nothing but a 1x1 convolution stands between the end of a block and a
    # norm, which takes the mean away again.
    ends = {
        f'backbone.{name}.conv.{len(block.conv) - 1}.bn.bias'
        for name, block in algorithm.backbone.named_modules()
        if isinstance(block, InvertedResidual)}
    # One iteration of several steps: in the definition itself, initial weights
    # that differ by 1e-13 give losses that differ by 1e-2 after three steps.
    plans = [[1.0, 0.61, 0.25], [1.0, 0.83, 0.4]][:iterations]
    check_iterations(algorithm, RecordingSGD(named, lr=0.01, momentum=0.9),
                     trainer, plans=plans, still=ends)


def test_the_last_norm_has_statistics_of_each_width(full):
    """Its channels are the same ones, what is in them is not."""
    norm = full.conv2.bn
    wide, narrow = norm.statistics(1.0)[0], norm.statistics(0.25)[0]
    assert wide.shape == narrow.shape == (1280, )
    assert (wide - narrow).abs().max() > 0.1
    assert norm.measured_subnets() == [Subnet(w) for w in sorted(WIDTHS)]


def test_private_norms():
    network = SlimmableMobileNetV2(
        norm_cfg=dict(type='SwitchableBN', widths=[1.0, 0.5]),
        out_indices=OUTPUTS)
    for _ in range(2):
        for width in (1.0, 0.5):
            maps(network.train(), width)
    network.eval()
    sliced = slice_network(network, 0.5)
    plain = MobileNetV2(0.5, out_indices=OUTPUTS)
    plain.eval()
    plain.load_state_dict(sliced.state_dict(), strict=True)
    assert equal(maps(plain), maps(network, 0.5))


def test_frozen_stages_and_checkpointing():
    network = SlimmableMobileNetV2(frozen_stages=2, with_cp=True, width=0.5)
    trained = {
        name.split('.')[0] for name, p in network.named_parameters()
        if p.requires_grad}
    assert trained == {
        'layer3', 'layer4', 'layer5', 'layer6', 'layer7', 'conv2'}
    before = network.conv1.bn.running_mean.clone()
    network.train()(IMAGES)[0].sum().backward()
    assert torch.equal(network.conv1.bn.running_mean, before)
    assert all((p.grad is not None) == p.requires_grad
               for p in network.parameters())
    whole = SlimmableMobileNetV2(frozen_stages=8, width=0.5).train()
    assert not any(p.requires_grad for p in whole.parameters())
    assert not any(m.training
                   for m in whole.modules() if isinstance(m, nn.BatchNorm2d))
    # The gradients of activation checkpointing are those without it.
    grads = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        network = SlimmableMobileNetV2(with_cp=with_cp).train()
        with at_width(network, 0.3):
            network(IMAGES)[0].square().sum().backward()
        grads.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize('arguments, message', [
    (dict(frozen_stages=9), r'to 8 \(everything\), got 9'),
    (dict(conv_cfg=dict(type='Conv2d')), 'brings its own convolutions'),
    (dict(norm_cfg=dict(type='GN')), "norm_cfg.type is one of .*got 'GN'"),
    (dict(norm_cfg=dict(type='SyncBN')), 'set width=0.5'),
    (dict(width=0.1), r'0.1 is outside the range \[0.25, 1\]'),
    (dict(width=0.5, missing_statistics='reset',
          frozen_stages=0), 'needs norms that train'),
    (dict(out_indices=(8, )), 'received 8'), ], ids=str)
def test_arguments_that_cannot_work_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SlimmableMobileNetV2(**arguments)


def test_a_full_checkpoint_is_cut_on_load(full, tmp_path):
    file = str(tmp_path / 'full.pth')
    torch.save(
        dict(state_dict={
            f'backbone.{k}': v for k, v in full.state_dict().items()}), file)
    initial = dict(type='Pretrained', checkpoint=file, prefix='backbone.')
    narrow = SlimmableMobileNetV2(width=0.5, out_indices=OUTPUTS,
                                  init_cfg=initial)
    narrow.init_weights()
    assert equal(maps(narrow.eval()), maps(full, 0.5))
    assert narrow.out_channels == (8, 16, 16, 32, 48, 80, 160, 1280)
    assert not any(isinstance(m, SlimmableBatchNorm) for m in narrow.modules())
    with pytest.raises(
            ValueError, match='no batch-norm statistics for w0.51; '
            'measured are: .*w1.00'):
        SlimmableMobileNetV2(width=0.51, init_cfg=initial).init_weights()
    with pytest.raises(ValueError, match=r'widen_factor=0.75.* have another '
                       'shape'):
        SlimmableMobileNetV2(0.75, init_cfg=initial).init_weights()
