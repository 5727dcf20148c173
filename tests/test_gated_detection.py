# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Mask R-CNN on the dense and on the pruned network of a gated checkpoint."""
from pathlib import Path

import pytest
import torch
from detection_stack import need_detection
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from torch import nn

from us3l_mm.apis import load_backbone, prune_checkpoint, slice_checkpoint
from us3l_mm.models import PrunedResNet, at
from us3l_mm.models.backbones.pretrained import (check_neck, check_weights,
                                                 is_known)
from us3l_mm.registry import MODELS

need_detection()
from small_detectors import scenes  # noqa: E402
from test_pruned_export import written  # noqa: E402

FOLDER = Path(__file__).parents[1] / 'configs/gated/detection'
DENSE = FOLDER / 'mask-rcnn_r18_fpn_ms-1x_coco.py'
PRUNED = FOLDER / 'mask-rcnn_r18-pruned_fpn_ms-1x_coco.py'
SMALL = dict(base_channels=16, stem_channels=16)
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.manual_seed(0))


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A gated checkpoint, and the two files for MMDetection."""
    folder = tmp_path_factory.mktemp('gated')
    checkpoint = written(folder,
                         dict(type='us3l_mm.GatedResNet', depth=18, **SMALL),
                         True)
    dense = slice_checkpoint(checkpoint, str(folder / 'dense.pth'), 'dense',
                             'mmdet', input_size=32)
    pruned = prune_checkpoint(checkpoint, str(folder / 'pruned.pth'),
                              file_format='mmdet')
    return checkpoint, dense, pruned


def printed(report):
    names = {}
    exec(report.usage, names)
    return names


def config_of(path, report, **changes):
    """The config of COCO for a network of a quarter of the channels."""
    init_default_scope('mmdet')
    cfg = Config.fromfile(path)
    cfg.merge_from_dict({
        f'model.{key}': value for key, value in {
            'backbone.base_channels': 16,
            'backbone.stem_channels': 16,
            'backbone.init_cfg.checkpoint': report.out,
            'neck.in_channels': [16, 32, 64, 128],
            'neck.out_channels': 16,
            'rpn_head.in_channels': 16,
            'rpn_head.feat_channels': 16,
            'roi_head.bbox_roi_extractor.out_channels': 16,
            'roi_head.bbox_head.in_channels': 16,
            'roi_head.bbox_head.conv_out_channels': 16,
            'roi_head.bbox_head.fc_out_channels': 32,
            'roi_head.mask_roi_extractor.out_channels': 16,
            'roi_head.mask_head.in_channels': 16,
            'roi_head.mask_head.conv_out_channels': 16,
            **changes}.items()})
    return cfg


def detector_of(cfg) -> nn.Module:
    detector = revert_sync_batchnorm(MODELS.build(cfg.model))
    detector.backbone.init_weights()
    return detector


@pytest.mark.parametrize('mode', ['dense', 'gated'])
def test_a_detector_starts_from_the_file_and_trains(files, mode):
    checkpoint, dense, pruned = files
    report = dense if mode == 'dense' else pruned
    said = printed(report)['backbone']
    inner = ({} if mode == 'dense' else {
        'backbone.mid_channels': said['mid_channels']})
    cfg = config_of(DENSE if mode == 'dense' else PRUNED, report, **inner)
    assert cfg.model.backbone.type == said['type']
    detector = detector_of(cfg)
    check_neck(detector)
    assert is_known(detector.backbone)
    check_weights(detector.backbone, report.out, 'backbone.')
    gated = load_backbone(checkpoint)
    detector.eval()
    with torch.no_grad(), at(gated, mode):
        expected, = gated(IMAGES)
        maps = detector.backbone(IMAGES)
    assert [m.shape[1] for m in maps] == [16, 32, 64, 128]
    scale = expected.abs().max()
    torch.testing.assert_close(maps[-1] / scale, expected / scale, rtol=0,
                               atol=1e-5)
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    wrapper = OptimWrapper(torch.optim.SGD(detector.parameters(), lr=0.01))
    log = detector.train().train_step(pseudo_collate(scenes()), wrapper)
    assert all(value.isfinite().all() for value in log.values())
    after = detector.state_dict()
    for name in ('layer1.0.conv1.weight', 'layer4.1.conv2.weight',
                 'bn1.running_mean'):
        assert not torch.equal(after[f'backbone.{name}'],
                               before[f'backbone.{name}']), name


def test_stages_of_a_pruned_backbone_are_frozen_as_of_any_other():
    network = PrunedResNet(18, [[3, 5], [9, 1], [20, 7], [2, 40]],
                           out_indices=(0, 1, 2, 3), frozen_stages=2,
                           norm_eval=True, **SMALL)
    assert network.train() is network
    frozen = ('conv1.', 'bn1.', 'layer1.', 'layer2.')
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name
    assert not any(m.training
                   for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    maps = network(IMAGES)
    assert [m.shape[1] for m in maps] == [16, 32, 64, 128]
    assert network.out_channels == (16, 32, 64, 128)
    sum(m.mean() for m in maps).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) != name.startswith(frozen), name


def test_norms_of_a_pruned_backbone_are_those_of_the_config():
    network = PrunedResNet(50, [[4] * 6, [4] * 8, [4] * 12, [4] * 6],
                           norm_cfg=dict(type='SyncBN',
                                         requires_grad=False), **SMALL)
    norms = [m for name, m in network.named_modules() if 'bn' in name]
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert not any(p.requires_grad for norm in norms
                   for p in norm.parameters())


def test_a_file_of_other_inner_widths_is_refused(files):
    _, _, report = files
    inner = printed(report)['backbone']['mid_channels']
    text = str(inner).replace(' ', '')
    for given in (None, [[1, 1]] * 4):
        cfg = config_of(PRUNED, report, **{'backbone.mid_channels': given})
        with pytest.raises(ValueError) as error:
            detector_of(cfg)
        assert f'model.backbone.mid_channels="{text}"' in str(error.value)
    # A stock network only logs it, and the check before training refuses.
    detector = detector_of(config_of(DENSE, report))
    with pytest.raises(
            ValueError, match='pruned network: set .*PrunedResNet '
            r'and model.backbone.mid_channels=\[\['):
        check_weights(detector.backbone, report.out, 'backbone.')
