# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""One detector for many widths is the sum of its sub-networks."""
import copy
import os

import pytest
import torch
from detection_stack import need_detection
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from processes import run_processes
from torch import nn

from us3l_mm.engine import (MultiPassDistributedDataParallel,
                            MultiPassOptimWrapper)
from us3l_mm.evaluation import calibrate_detector
from us3l_mm.export import slice_network
from us3l_mm.models import Plan, SlimmableResNet
from us3l_mm.models.detectors.neck_inputs import measure_norms, slice_inputs
from us3l_mm.models.layers import SlimmableBatchNorm, Subnet, at
from us3l_mm.registry import MODELS

need_detection()
from small_detectors import (  # noqa: E402
    all_widths, sliced_by_hand, loader_of, scenes, stock_detector)

WIDTHS = [1.0, 0.75, 0.5, 0.25]


class KeepsGradients(MultiPassOptimWrapper):
    steps = 0

    def step(self, **kwargs):
        self.steps += 1
        self.gradients = [
            p.grad.clone() if p.grad is not None else None
            for p in self.optimizer.param_groups[0]['params']]
        super().step(**kwargs)


def wrapper_of(model, lr=0.01):
    return KeepsGradients(optimizer=torch.optim.SGD(model.parameters(), lr=lr))


def prepared(model, images, training=True):
    return model.data_preprocessor(copy.deepcopy(pseudo_collate(images)),
                                   training)


def test_a_step_is_the_sum_of_the_steps_of_stock_detectors():
    detector = all_widths().train()
    stocks = {w: sliced_by_hand(detector, w).train() for w in WIDTHS}
    batch, wrapper = pseudo_collate(scenes()), wrapper_of(detector)
    torch.manual_seed(1)  # regions are drawn at random
    log = detector.train_step(copy.deepcopy(batch), wrapper)

    torch.manual_seed(1)
    sums = {n: torch.zeros_like(p) for n, p in detector.named_parameters()}
    losses = {}
    for width, stock in stocks.items():
        total, parts = stock.parse_losses(
            stock(**stock.data_preprocessor(copy.deepcopy(batch), True),
                  mode='loss'))
        total.backward()
        losses[width] = parts
        for name, p in stock.named_parameters():
            sums[name][tuple(slice(n) for n in p.shape)] += p.grad
    names = [f'loss_w{width:.2f}' for width in WIDTHS]
    for name, width in zip(names, WIDTHS):
        torch.testing.assert_close(log[name], losses[width]['loss'].detach())
    torch.testing.assert_close(
        log['loss'],
        sum(p['loss'] for p in losses.values()).detach())
    # MMDetection's own names are the parts of the widest network.
    for name in ('loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox',
                 'loss_mask', 'acc'):
        torch.testing.assert_close(log[name], losses[1.0][name].detach())
    assert [log[f'width_{name[5:]}'] for name in names] == WIDTHS
    assert wrapper.steps == 1
    for (name, _), gradient in zip(detector.named_parameters(),
                                   wrapper.gradients):
        torch.testing.assert_close(gradient, sums[name], rtol=1e-4, atol=1e-5,
                                   msg=lambda m, name=name: f'{name}: {m}')


def test_widths_of_a_plan_are_those_that_train():
    detector = all_widths().train()
    batch = dict(pseudo_collate(scenes()), plan=Plan.sampled([1.0, 0.3]))
    seen = []
    detector.backbone.layer3[1].conv2.register_forward_pre_hook(
        lambda conv, args: seen.append(args[0].shape[1]))
    log = detector.train_step(batch, wrapper_of(detector))
    assert seen == [64, 20]  # 64 * 0.3, rounded to multiples of 4
    assert {key for key in log
            if key.startswith('width')} == {'width_max', 'width_min'}


def test_images_without_instances_train():
    detector = all_widths().train()
    wrapper = wrapper_of(detector)
    log = detector.train_step(pseudo_collate(scenes(items=0)), wrapper)
    assert torch.isfinite(log['loss']) and log['loss_mask'] == 0
    assert all(g is None or torch.isfinite(g).all() for g in wrapper.gradients)


def test_a_pass_may_take_its_samples_apart(monkeypatch):
    detector, taken = all_widths().train(), []
    whole = type(detector).loss

    def taking(self, inputs, samples):
        losses = whole(self, inputs, samples)
        taken.extend(sample.gt_instances.pop('masks') for sample in samples)
        return losses

    monkeypatch.setattr(type(detector), 'loss', taking)
    detector.train_step(pseudo_collate(scenes()), wrapper_of(detector))
    assert len(taken) == 4 * 2


def test_activation_checkpoints_change_nothing():
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(2)
        detector = all_widths(**{'backbone.with_cp': with_cp}).train()
        wrapper = wrapper_of(detector)
        detector.train_step(
            dict(pseudo_collate(scenes()), plan=Plan.sampled([1.0, 0.3])),
            wrapper)
        gradients.append(wrapper.gradients)
    for plain, again in zip(*gradients):
        torch.testing.assert_close(again, plain)


NECKS = {
    'FPN':
    dict(type='FPN', num_outs=4),
    'extra level from the input':
    dict(type='FPN', start_level=1, add_extra_convs='on_input', num_outs=4),
    'PAFPN':
    dict(type='PAFPN', num_outs=3, norm_cfg=dict(type='BN')),
    'ChannelMapper':
    dict(type='ChannelMapper', norm_cfg=dict(type='GN', num_groups=8)), }


def narrow_network(**kwargs):
    return SlimmableResNet(18, base_channels=16, stem_channels=16,
                           out_indices=(0, 1, 2), num_stages=3,
                           strides=(1, 2, 2), dilations=(1, 1, 1), **kwargs)


@pytest.mark.parametrize('name', NECKS)
def test_reading_fewer_channels_is_padding_with_zeros(name):
    init_default_scope('mmdet')
    backbone = narrow_network(divisor=4)
    cfg = dict(NECKS[name], in_channels=list(backbone.out_channels),
               out_channels=16)
    neck = MODELS.build(cfg).eval()
    neck.init_weights()
    keys = list(neck.state_dict())
    stock = copy.deepcopy(neck)
    slice_inputs(neck, backbone)
    assert list(neck.state_dict()) == keys
    whole = [
        torch.randn(2, c, 16 // 2**i, 16 // 2**i)
        for i, c in enumerate(backbone.out_channels)]
    for width in (1.0, 0.5, 0.3, 0.25):
        active = backbone.feature_channels(width)
        padded = [m.clone() for m in whole]
        for each, channels in zip(padded, active):
            each[:, channels:] = 0
        with at(neck, width):
            found = neck([m[:, :c] for m, c in zip(whole, active)])
        for a, b in zip(found, stock(padded)):
            torch.testing.assert_close(a, b)


def test_a_slice_is_a_stock_detector_with_the_same_predictions():
    detector = all_widths()
    detector.init_weights()
    images = scenes(count=4)
    calibrate_detector(detector, loader_of(images), WIDTHS)
    detector.eval()
    for width in WIDTHS:
        cut = slice_network(detector, width)
        stock = stock_detector(width).eval()
        assert type(cut) is type(stock)
        assert cut.neck.in_channels == stock.neck.in_channels
        stock.load_state_dict(cut.state_dict(), strict=True)
        with torch.no_grad(), at(detector, width):
            ours = detector(**prepared(detector, images, False),
                            mode='predict')
            theirs = stock(**prepared(stock, images, False), mode='predict')
        for a, b in zip(ours, theirs):
            a, b = a.pred_instances, b.pred_instances
            assert len(a) == len(b) > 0
            for key in ('bboxes', 'scores', 'labels', 'masks'):
                torch.testing.assert_close(a[key], b[key])
    assert detector.subnets == [*map(Subnet, WIDTHS)
                                ]  # what was cut from is as before


@pytest.mark.parametrize('width', [1.0, 0.5])
def test_statistics_are_those_of_a_stock_detector_in_training(width):
    """Of all norms: backbone, pyramid, and mask head on drawn regions."""
    detector = all_widths()
    detector.init_weights()
    images = scenes()
    norms = {
        name: module for name, module in detector.named_modules()
        if isinstance(module, SlimmableBatchNorm)}
    parts = {name.split('.')[0] for name in norms}
    assert parts == {'backbone', 'neck', 'roi_head'}
    stock = sliced_by_hand(detector, width).train()
    for norm in stock.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    torch.manual_seed(3)
    seen = calibrate_detector(detector, loader_of(images), [width])
    torch.manual_seed(3)
    # One batch, in the order that calibration fixes
    order = torch.randperm(2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stock(**prepared(stock, [images[i] for i in order]), mode='loss')
    assert seen == 2
    plain = dict(stock.named_modules())
    for name, norm in norms.items():
        assert norm.measured_subnets() == [Subnet(width)]
        mean, var = norm.statistics(width)
        torch.testing.assert_close(mean, plain[name].running_mean)
        torch.testing.assert_close(var, plain[name].running_var,
                                   msg=lambda m, name=name: f'{name}: {m}')


def test_norms_of_the_backbone_alone_need_no_annotations():
    detector = all_widths(**{
        'neck.norm_cfg': None,
        'roi_head.mask_head.norm_cfg': None})
    images = [dict(image, data_samples=None) for image in scenes()]
    batch = torch.stack([image['inputs'] for image in images]).float()
    detector.run_norms(batch, [None, None])
    assert not any(
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        for part in (detector.neck, detector.roi_head)
        for module in part.modules())


FCOS = dict(
    type='us3l_mm.AllWidthsDetector', detector='FCOS', sync_norms=True,
    widths=[1.0, 0.5, 0.25], data_preprocessor=dict(
        type='DetDataPreprocessor'), backbone=dict(
            type='us3l_mm.SlimmableResNet', depth=18, base_channels=8,
            stem_channels=8, divisor=2, num_stages=3, strides=(1, 2, 2),
            dilations=(1, 1, 1), out_indices=(0, 1, 2)), neck=dict(
                type='FPN', out_channels=8, start_level=1, num_outs=3,
                add_extra_convs='on_input', norm_cfg=dict(type='BN')),
    bbox_head=dict(type='FCOSHead', num_classes=10,
                   in_channels=8, feat_channels=8, stacked_convs=1, strides=[
                       8, 16, 32], norm_cfg=dict(type='GN', num_groups=2),
                   regress_ranges=((-1, 16), (16, 32), (32, 1e8))))


def train_fcos(forward_of, world_size, rank):
    """Three steps on this process's share of four images."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    detector = MODELS.build(copy.deepcopy(FCOS)).double()
    model, wrapper = forward_of(detector), wrapper_of(detector)
    images = scenes(4)[rank::world_size]
    for sample in (image['data_samples'] for image in images):
        sample.gt_instances.bboxes = sample.gt_instances.bboxes.double()
    batch = prepared(detector, images)
    batch['inputs'] = batch['inputs'].double()
    detector.views = lambda data: batch
    for _ in range(3):
        model.train_step({}, wrapper)
    return detector.state_dict()


def worker(rank, folder):
    state = train_fcos(MultiPassDistributedDataParallel, 2, rank)
    torch.save(state, os.path.join(folder, f'{rank}.pth'))


def test_two_processes_train_what_one_does_on_the_joint_batch(tmp_path):
    """FCOS, whose losses are divided by the positives of all processes."""
    run_processes(worker, 2, tmp_path)
    alone = train_fcos(lambda detector: detector, 1, 0)
    ranks = [torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1)]
    for key, value in alone.items():
        assert torch.equal(ranks[0][key], ranks[1][key]), key
        # FCOS divides by counts in single precision; norms that are not
        # synchronised make a difference of 7e-2.
        torch.testing.assert_close(ranks[0][key], value, rtol=0, atol=1e-6)


class PassesOn(nn.Module):
    """A neck without convolutions."""

    def __init__(self, in_channels):
        super().__init__()

    def forward(self, maps):
        return tuple(maps)


class UsesMapsElsewhere(nn.Module):
    """A neck that also hands on the map itself."""

    def __init__(self, in_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels[0], 8, 1)

    def forward(self, maps):
        return self.conv(maps[0]), maps[1]


@pytest.mark.parametrize('neck, message', [
    (PassesOn, 'No convolution of this PassesOn.*lateral convolutions'),
    (UsesMapsElsewhere, 'UsesMapsElsewhere uses a map.*outside')])
def test_necks_that_cannot_take_fewer_channels_are_refused(neck, message):
    backbone = narrow_network()
    with pytest.raises(ValueError, match=message):
        slice_inputs(neck(backbone.out_channels), backbone)


@pytest.mark.parametrize('changes, message', [
    ({
        'backbone.width': 0.5}, 'any width; .* has the width 0.5'),
    ({
        'widths': [1.0, 0.1]}, r'0.1 is outside the range \[0.25, 1\]'),
    ({
        'widths': []}, 'has at least one, each named once, got'),
    ({
        'widths': [0.5, 0.5]}, 'named once'),
    ({
        'detector': 'MaskCNN'}, "no detector 'MaskCNN'"),
    ({
        'neck': None}, 'needs a neck'),
    ({
        'backbone': dict(type='ResNet', depth=18, _delete_=True)
    }, 'this ResNet has one'), ])
def test_what_cannot_run_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        all_widths(**changes)


def test_norms_over_all_widths_are_refused():
    with pytest.raises(ValueError, match='SyncBatchNorm.*model.sync_norms'):
        measure_norms(nn.Sequential(nn.SyncBatchNorm(4)))


def test_a_loss_without_a_sub_network_is_refused():
    detector = all_widths()
    batch = prepared(detector, scenes())
    with pytest.raises(RuntimeError, match='MultiPassDistributedDataParallel'):
        detector(**batch, mode='loss')


def test_an_unmeasured_width_does_not_predict():
    detector = all_widths()
    calibrate_detector(detector, loader_of(scenes()), [1.0])
    detector.eval()
    with pytest.raises(ValueError, match='for w0.50; measured are: w1.00'), \
            at(detector, 0.5):
        detector(**prepared(detector, scenes(), False), mode='predict')
