# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Mask R-CNN on the dense network of a gated checkpoint, by MMDetection's own
# classes: the file that tools/slice_checkpoint.py CKPT FILE --width dense
# --format mmdet writes. --cfg-options model.backbone.init_cfg.checkpoint=FILE
_base_ = '../../us3l/detection/mask-rcnn_r50_fpn_ms-1x_coco.py'

model = dict(
    backbone=dict(depth=18),  # the paper's network
    neck=dict(in_channels=[64, 128, 256, 512]))
