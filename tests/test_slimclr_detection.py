# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A detector of all widths whose backbone has switchable norms."""
from pathlib import Path

import pytest
import torch
from detection_stack import need_detection
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope

from us3l_mm.export import slice_network
from us3l_mm.models import SlimmableResNet, Subnet, at
from us3l_mm.models.layers import check_statistics
from us3l_mm.registry import MODELS

need_detection()
from small_detectors import (  # noqa: E402
    CHANNELS, DIVISOR, all_widths, scenes)
from test_all_widths_detector import prepared, wrapper_of  # noqa: E402
from test_all_widths_run import DEMO, call, options, scalars  # noqa: E402

WIDTHS = [1.0, 0.75, 0.5, 0.25]
NORMS = dict(type='SwitchableBN', subnets=WIDTHS)
COCO = (Path(__file__).parents[1] / 'configs/slimclr/detection' /
        'mask-rcnn_r50-all-widths_fpn_1x_coco.py')


def test_a_checkpoint_of_pre_training_starts_a_detector(tmp_path):
    network = SlimmableResNet(
        18, base_channels=CHANNELS, stem_channels=CHANNELS, divisor=DIVISOR,
        num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1),
        out_indices=(0, 1, 2), norm_cfg=NORMS)
    network.train()
    with torch.no_grad():
        for width in WIDTHS:
            with at(network, width):
                network(torch.randn(4, 3, 32, 32))
    path = tmp_path / 'pretrained.pth'
    torch.save(
        dict(state_dict={
            f'backbone.{k}': v
            for k, v in network.state_dict().items()}), path)
    detector = all_widths(
        **{
            'backbone.norm_cfg':
            NORMS,
            'backbone.init_cfg':
            dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')})
    detector.init_weights()
    for name, value in network.state_dict().items():
        assert torch.equal(detector.backbone.state_dict()[name], value), name
    # The norms of each width train, and track their statistics.
    detector.train().train_step(pseudo_collate(scenes()), wrapper_of(detector))
    moved = detector.backbone.state_dict()
    for subnet in map(Subnet, WIDTHS):
        stem = f'layer2.0.bn1.{subnet.key}.'.replace('..', '.')
        for leaf in ('weight', 'running_mean'):
            assert not torch.equal(moved[stem + leaf],
                                   network.state_dict()[stem + leaf])
    # Nothing to calibrate in the backbone; a slice is the same detector.
    detector.eval()
    images = prepared(detector, scenes(), training=False)['inputs']
    for width in WIDTHS:
        check_statistics(detector.backbone, width)
        stock = slice_network(detector, width, without_statistics=True).eval()
        with torch.no_grad(), at(detector, width):
            maps = detector.backbone(images)
            expected = stock.backbone(images)
        torch.testing.assert_close(maps, expected, rtol=0, atol=0)


def test_a_width_that_was_not_trained_is_refused():
    with pytest.raises(ValueError,
                       match=r'no batch norm of its own for w0.30'):
        all_widths(**{'backbone.norm_cfg': NORMS, 'widths': [1.0, 0.3]})


def test_the_coco_config_needs_no_calibration():
    init_default_scope('mmdet')
    cfg = Config.fromfile(COCO)
    assert cfg.default_hooks.calibration is None
    detector = MODELS.build(cfg.model).eval()
    assert detector.subnets == [*map(Subnet, WIDTHS)]
    assert all(p.requires_grad for p in detector.parameters())
    for subnet in detector.subnets:
        check_statistics(detector, subnet)
    assert cfg.optim_wrapper.optimizer.lr == 0.08


def test_a_run_without_calibration(tmp_path, monkeypatch):
    """Where pyramid and heads have no norms, nothing is measured."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / 'tools'))
    call(monkeypatch, 'train',
         DEMO, '--work-dir', tmp_path / 'work', '--cfg-options',
         *options(tmp_path), 'model.backbone.norm_cfg.type=SwitchableBN',
         'model.backbone.norm_cfg.subnets=[1.0,0.75,0.5,0.25]',
         'model.neck.norm_cfg=None', 'model.roi_head.mask_head.norm_cfg=None',
         'default_hooks.calibration=None')
    *steps, metrics = scalars(tmp_path / 'work')
    assert len(steps) == 3
    for width in WIDTHS:
        assert f'coco/bbox_mAP_w{width:.2f}' in metrics
        assert 0 < steps[-1][f'loss_w{width:.2f}'] < 1e3
