# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
_base_ = './faster-rcnn_r50-w100_fpn_ms-1x_coco.py'

model = dict(
    backbone=dict(base_channels=48, stem_channels=48),  # 0.75 x 64
    neck=dict(in_channels=[192, 384, 768, 1536]))
