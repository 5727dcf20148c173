# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Detectors of the demo's kind, very small: for many widths, and stock ones.
"""
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope

from us3l_mm.registry import MODELS

FOLDER = Path(__file__).parents[1] / 'configs/us3l/detection'
DEMO = FOLDER / 'mask-rcnn_demo-all-widths_digit-scenes.py'
STOCK = FOLDER / 'mask-rcnn_demo_digit-scenes.py'
CHANNELS = 16  # of the stem; 4 at width 0.25
DIVISOR = 4


def all_widths_cfg(**changes) -> Config:
    """The model of the demo's config, smaller; ``changes`` by dotted key."""
    init_default_scope('mmdet')
    cfg = Config.fromfile(DEMO)
    cfg.merge_from_dict({
        f'model.{key}': value for key, value in {
            'backbone.base_channels': CHANNELS,
            'backbone.divisor': DIVISOR,
            'backbone.stem_channels': CHANNELS,
            'backbone.init_cfg': None,
            'roi_head.bbox_head.fc_out_channels': 32,
            'test_cfg.rcnn.score_thr': 0.0,
            **changes}.items()})
    return cfg


def all_widths(**changes):
    return MODELS.build(all_widths_cfg(**changes).model)


def stock_detector(width: float):
    """MMDetection's own Mask R-CNN of that width, its own ResNet."""
    init_default_scope('mmdet')
    cfg, channels = Config.fromfile(STOCK), int(CHANNELS * width)
    cfg.merge_from_dict({
        'model.backbone.base_channels':
        channels,
        'model.backbone.stem_channels':
        channels,
        'model.neck.in_channels': [channels * 2**i for i in range(3)],
        'model.roi_head.bbox_head.fc_out_channels':
        32,
        'model.test_cfg.rcnn.score_thr':
        0.0})
    return MODELS.build(cfg.model)


def sliced_by_hand(detector, width: float):
    """A stock detector with the leading channels of all weights."""
    stock, full = stock_detector(width), dict(detector.named_parameters())
    assert full.keys() == dict(stock.named_parameters()).keys()
    with torch.no_grad():
        for name, own in stock.named_parameters():
            own.copy_(full[name][tuple(slice(n) for n in own.shape)])
    return stock


def scenes(count: int = 2, items: int = 3, size: int = 64) -> list:
    """Packed images of noise with boxes and masks, as a data set gives them.
    """
    from mmdet.testing import demo_mm_inputs
    batch = demo_mm_inputs(count, [
        (3, size, size)] * count, num_items=[items] * count, num_classes=10,
                           with_mask=True)
    return [
        dict(inputs=image, data_samples=sample)
        for image, sample in zip(batch['inputs'], batch['data_samples'])]


def loader_of(images: list, batch_size: int = 2):
    return torch.utils.data.DataLoader(images, batch_size,
                                       collate_fn=pseudo_collate)
