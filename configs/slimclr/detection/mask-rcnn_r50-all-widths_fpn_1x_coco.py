# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# One Mask R-CNN for four widths from a checkpoint of SlimCLR, as in its COCO
# protocol. Each width keeps its norms, which are trained and track running
# statistics, so that there is nothing to calibrate.
# --cfg-options model.backbone.init_cfg.checkpoint=FILE
_base_ = '../../us3l/detection/mask-rcnn_r50-all-widths_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        norm_cfg=dict(type='SwitchableBN', subnets=[1.0, 0.75, 0.5, 0.25])))

default_hooks = dict(calibration=None)
