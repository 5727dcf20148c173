# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Mask R-CNN on one width of a full checkpoint, which is sliced when it is
# loaded: --cfg-options model.backbone.width=0.3
# model.backbone.init_cfg.checkpoint=FILE, where FILE has statistics of that
# width (tools/evaluate_widths.py CONFIG CKPT --widths 0.3
# --save-checkpoint FILE).
_base_ = './mask-rcnn_r50_fpn_ms-1x_coco.py'

model = dict(
    type='us3l_mm.SubnetDetector',  # the neck's in_channels follow the width
    detector='MaskRCNN',
    backbone=dict(type='us3l_mm.SlimmableResNet', width=0.5))
