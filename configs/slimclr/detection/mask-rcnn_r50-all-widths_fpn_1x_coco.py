# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# One Mask R-CNN for the widths of a SlimCLR checkpoint, by the paper's COCO
# protocol. Each width has norms of its own, which go on tracking their
# statistics, so that nothing is measured afterwards. It starts from
# --cfg-options model.backbone.init_cfg.checkpoint=FILE, a checkpoint of the
# pre-training.
_base_ = '../../us3l/detection/mask-rcnn_r50-all-widths_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        norm_cfg=dict(type='SwitchableBN', subnets=[1.0, 0.75, 0.5, 0.25
                                                    ])))  # paper

default_hooks = dict(calibration=None)
