# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The detection configs are what their names and comments say."""
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detection_stack import need_detection
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from us3l_mm.apis.launching.processes import for_processes_on_cpus
from us3l_mm.models import SlimmableResNet, Subnet
from us3l_mm.models.layers import at, check_statistics
from us3l_mm.registry import HOOKS, MODELS

need_detection()
ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'configs/us3l/detection'
# Those for many widths at once, and of other data, have tests of their own.
CONFIGS = sorted(path for path in FOLDER.glob('*_fpn_ms-1x_coco.py')
                 if re.search(r'_r50(-any-width)?_', path.stem))
SLIMCLR = sorted((ROOT / 'configs/slimclr/detection').glob('*.py'))
OTHERS = [*sorted({*FOLDER.glob('*.py')} - {*CONFIGS}), *SLIMCLR]
SLICES = [path for path in CONFIGS if 'any-width' not in path.stem]
WIDTHS = (1.0, 0.75, 0.5, 0.25)
KINDS = {'mask-rcnn': 'MaskRCNN', 'faster-rcnn': 'FasterRCNN'}


def config_of(path, **options) -> Config:
    init_default_scope('mmdet')
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(options)
    return cfg


def at_width(path, width) -> dict:
    """The options that set the width of the backbone."""
    if path not in SLICES:
        return {'model.backbone.width': width}
    channels = int(64 * width)
    return {
        'model.backbone.base_channels': channels,
        'model.backbone.stem_channels': channels,
        'model.neck.in_channels': [channels * 4 * 2**i for i in range(4)]}


def build_hooks(cfg):
    for hook in cfg.default_hooks.values():
        if hook is not None and hook.type.startswith('us3l_mm.'):
            HOOKS.build(hook)
    assert {'check_pretrained', 'check_annotations'} <= {*cfg.default_hooks}


def test_two_detectors_of_a_slice_and_of_any_width():
    assert {path.stem for path in CONFIGS} == {
        f'{kind}_r50{which}_fpn_ms-1x_coco' for kind in KINDS
        for which in ('', '-any-width')}


# All widths of each way to set one; either detector has each of them once.
@pytest.mark.parametrize('name, width', [
    (f'{kind}_r50{which}_fpn_ms-1x_coco', width)
    for kind, which, widths in (('mask-rcnn', '', (1.0, 0.5)),
                                ('faster-rcnn', '', (0.75, 0.25)),
                                ('mask-rcnn', '-any-width',
                                 (0.75, 0.25)), ('faster-rcnn', '-any-width',
                                                 (1.0, 0.5)))
    for width in widths])
def test_it_builds_what_its_name_says(name, width):
    path = FOLDER / f'{name}.py'
    cfg = config_of(path, **at_width(path, width))
    model, kind = MODELS.build(cfg.model), path.stem.split('_')[0]
    assert type(model).__name__ == KINDS[kind]
    assert type(model).__module__.startswith('mmdet.')
    assert type(model.backbone).__module__.startswith('mmdet.' if path in
                                                      SLICES else 'us3l_mm.')
    with torch.no_grad():
        maps = model.eval().backbone(torch.zeros(1, 3, 64, 64))
    # Spec sizes of a ResNet-50 pyramid, times the width
    expected = [int(c * width) for c in (256, 512, 1024, 2048)]
    assert [m.shape[1] for m in maps] == expected == model.neck.in_channels
    assert len(model.neck(maps)) == 5
    assert [m.shape[-1] for m in maps] == [16, 8, 4, 2]
    build_hooks(cfg)
    check_transfer_settings(model.train(), 'mask' in path.stem)


@pytest.mark.parametrize('path', SLICES, ids=lambda path: path.stem)
def test_without_options_a_slice_has_width_one(path):
    shapes = [{
        name: p.shape for name, p in MODELS.build(
            config_of(path, **options).model).named_parameters()}
              for options in ({}, at_width(path, 1.0))]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize('path', OTHERS, ids=lambda path: path.stem)
def test_every_other_config_builds_and_computes_losses(path):
    cfg = config_of(path)
    build_hooks(cfg)
    cfg.model.train_cfg.rpn_proposal.max_per_img = 20  # regions for the heads
    cfg.model.train_cfg.rcnn.sampler.num = 20
    model = MODELS.build(cfg.model).train()
    side, classes = 64, model.roi_head.bbox_head.num_classes
    batch = dict(
        inputs=[torch.zeros(3, side, side, dtype=torch.uint8)] * 2,
        data_samples=[one_object(side, classes - 1) for _ in range(2)])
    data = model.data_preprocessor(batch, training=True)
    total, _ = model.parse_losses(
        model.loss(data['inputs'], data['data_samples']))
    assert torch.isfinite(total) and total > 0
    total.backward()


def one_object(side, label):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    mask = np.zeros((1, side, side), np.uint8)
    mask[0, 8:40, 12:36] = 1
    sample = DetDataSample(metainfo=dict(img_shape=(side, side), ori_shape=(
        side, side), batch_input_shape=(side, side), scale_factor=(1.0, 1.0)))
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[12., 8., 36., 40.]]), labels=torch.tensor([
            label]), masks=BitmapMasks(mask, side, side))
    return sample


def check_transfer_settings(model, with_masks):
    # Everything learns, and every norm is one over all processes.
    assert all(p.requires_grad for p in model.parameters())
    norms = [
        m for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert all(
        isinstance(norm, nn.SyncBatchNorm) and norm.training for norm in norms)
    # Backbone, pyramid (lateral and output), box head, mask head
    assert len(norms) == 53 + 2 * 4 + 4 + 4 * with_masks
    # In a single process MMEngine makes them plain ones, ours as well.
    plain = revert_sync_batchnorm(model)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in plain.modules())
    # The stride is where pre-training has it.
    block = plain.backbone.layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_schedule_and_images(path):
    cfg = config_of(path)
    pipeline = cfg.train_dataloader.dataset.pipeline
    assert [step.type for step in pipeline] == [
        'LoadImageFromFile', 'LoadAnnotations', 'RandomChoiceResize',
        'RandomFlip', 'PackDetInputs']
    assert [min(s) for s in pipeline[2].scales] == [*range(640, 801, 32)]
    assert pipeline[1].get('with_mask', False) is ('mask' in path.stem)
    assert cfg.val_dataloader.dataset.pipeline[1].scale == (1333, 800)
    assert cfg.train_cfg.max_epochs == 12
    assert cfg.optim_wrapper.optimizer.lr == 0.02
    assert cfg.train_dataloader.batch_size * 8 == 16
    assert cfg.auto_scale_lr.base_batch_size == 16
    # Pixels reach the network as they did in pre-training.
    before = config_of(ROOT / 'configs/_base_/datasets/imagenet_two-views.py')
    here, there = cfg.model.data_preprocessor, before.data_preprocessor
    assert (here.mean, here.std) == (there.mean, there.std)
    assert here.bgr_to_rgb is there.to_rgb is True
    images = torch.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32) % 251
    with_boxes = MODELS.build(here).forward(
        dict(inputs=list(images), data_samples=None))
    views = MODELS.build(dict(there, type='mmpretrain.' + there.type)).forward(
        dict(inputs=[images.to(torch.uint8)], data_samples=[]))
    torch.testing.assert_close(with_boxes['inputs'], views['inputs'][0])


@pytest.mark.parametrize('width', [0.25, 0.3, 0.7, 1.0])
def test_the_neck_follows_any_width(width):
    path = FOLDER / 'mask-rcnn_r50-any-width_fpn_ms-1x_coco.py'
    model = MODELS.build(
        config_of(path, **{
            'model.backbone.width': width}).model)
    with torch.no_grad():
        maps = model.eval().backbone(torch.zeros(1, 3, 32, 32))
        assert {m.shape[1] for m in model.neck(maps)} == {256}
    assert model.neck.in_channels == [m.shape[1] for m in maps]


def test_a_detector_of_one_width_needs_a_width():
    cfg = config_of(FOLDER / 'mask-rcnn_r50-any-width_fpn_ms-1x_coco.py')
    cfg.model.backbone.update(width=None, norm_cfg=dict(type='BN'))
    with pytest.raises(ValueError, match='runs at any.*backbone.width=0.5'):
        MODELS.build(cfg.model)


def test_synchronised_norms_need_a_width():
    sync = dict(type='SyncBN', requires_grad=True)
    network = SlimmableResNet(18, width=0.5, norm_cfg=sync)
    assert isinstance(network.bn1, nn.SyncBatchNorm)
    plain = SlimmableResNet(18, width=0.5)
    assert network.state_dict().keys() == plain.state_dict().keys()
    frozen = SlimmableResNet(18, width=0.5, norm_cfg=sync, frozen_stages=1)
    assert not frozen.layer1[0].bn1.weight.requires_grad
    assert frozen.layer2[0].bn1.weight.requires_grad
    with pytest.raises(ValueError, match='single width.*sync_norms=True'):
        SlimmableResNet(18, norm_cfg=sync)


def test_processes_on_cpus_have_plain_norms():
    cfg = config_of(FOLDER / 'mask-rcnn_r50_fpn_ms-1x_coco.py')
    for_processes_on_cpus(cfg)
    assert 'SyncBN' not in str(cfg.model)
    assert cfg.model.neck.norm_cfg == dict(type='BN', requires_grad=True)
    assert cfg.env_cfg.dist_cfg.backend == 'gloo'
    assert cfg.model_wrapper_cfg.device_ids is None


@pytest.mark.parametrize('path', SLIMCLR, ids=lambda path: path.stem)
def test_a_slimclr_checkpoint_keeps_the_norms_of_all_widths(path, tmp_path):
    small = dict(depth=18, base_channels=32, stem_channels=32)
    cfg = config_of(path)
    assert cfg.default_hooks.calibration is None
    backbone = MODELS.build(
        dict(small, type='us3l_mm.SlimmableResNet',
             norm_cfg=cfg.model.backbone.norm_cfg, out_indices=(0, 1, 2, 3)))
    for value in backbone.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.1)
    file = tmp_path / 'epoch_1.pth'
    torch.save(
        dict(
            state_dict={
                f'backbone.{name}': value
                for name, value in backbone.state_dict().items()}), file)
    cfg.model.backbone.update(**small)
    cfg.model.backbone.init_cfg.checkpoint = str(file)
    cfg.model.neck.in_channels = [32, 64, 128, 256]
    model = MODELS.build(cfg.model)
    model.init_weights()
    image, before = torch.rand(2, 3, 64, 64), {}
    with torch.no_grad():
        for width in WIDTHS:
            check_statistics(model, Subnet(width))  # nothing to measure
            for network in (backbone, model):
                network.eval()
            with at(backbone, width), at(model, width):
                maps = model.backbone(image)
                for ours, theirs in zip(maps, backbone(image)):
                    assert torch.equal(ours, theirs)
                assert len(model.neck(maps)) == 5
                norm = model.backbone.bn1.of(Subnet(width))
                before[width] = norm.running_mean.clone()
                model.train().backbone(image)
    for width, mean in before.items():  # and training goes on with them
        norm = model.backbone.bn1.of(Subnet(width))
        assert not torch.equal(norm.running_mean, mean)


def test_readme_lists_every_config_and_every_source_is_named():
    text = (FOLDER / 'README.md').read_text()
    links = {
        FOLDER / link for link in re.findall(r'\]\((?!http)(.+?\.py)\)', text)}
    assert {*CONFIGS} <= {path.resolve() for path in links}
    assert all(path.exists() for path in links)
    for name in re.findall(r'(?:tools|configs)/[\w./-]+\.(?:py|sh)', text):
        assert (ROOT / name).exists(), name
