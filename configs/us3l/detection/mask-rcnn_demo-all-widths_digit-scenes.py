# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The demo's Mask R-CNN as one detector for four widths: all of them in every
# iteration, one optimizer step from the sum of their gradients. The norms of
# pyramid and mask head have statistics per width, like those of the backbone.
_base_ = './mask-rcnn_demo_digit-scenes.py'

model = dict(
    type='us3l_mm.AllWidthsDetector',
    detector='MaskRCNN',
    widths=[1.0, 0.75, 0.5, 0.25],
    backbone=dict(
        _delete_=True,
        # The network of us3l_resnet18_demo_digits.py
        type='us3l_mm.SlimmableResNet',
        depth=18,
        base_channels=32,
        stem_channels=32,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        norm_eval=False,
        # --cfg-options model.backbone.init_cfg.checkpoint=FILE
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.')))

val_cfg = dict(_delete_=True, type='us3l_mm.WidthValLoop')
test_cfg = dict(_delete_=True, type='us3l_mm.WidthTestLoop')
model_wrapper_cfg = dict(type='us3l_mm.MultiPassDistributedDataParallel')

optim_wrapper = dict(type='us3l_mm.MultiPassOptimWrapper')
default_hooks = dict(
    preflight=dict(type='us3l_mm.PreflightHook'),
    calibration=dict(
        type='us3l_mm.CalibrationHook',
        num_images=24,  # the whole training set
        by_epoch=False,
        interval=1000))  # as checkpoints
