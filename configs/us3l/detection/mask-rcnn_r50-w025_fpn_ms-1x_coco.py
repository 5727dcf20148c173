# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
_base_ = './mask-rcnn_r50-w100_fpn_ms-1x_coco.py'

model = dict(
    backbone=dict(base_channels=16, stem_channels=16),  # 0.25 x 64
    neck=dict(in_channels=[64, 128, 256, 512]))
