# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# One Mask R-CNN for many widths, by the COCO protocol of SlimCLR (arXiv
# 2209.15525): all widths in every iteration, one optimizer step from the sum
# of their gradients. It starts from a full checkpoint, without statistics:
# --cfg-options model.backbone.init_cfg.checkpoint=FILE
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py']

custom_imports = dict(imports=['us3l_mm'], allow_failed_imports=False)

model = dict(
    type='us3l_mm.AllWidthsDetector',
    detector='MaskRCNN',
    widths=[1.0, 0.75, 0.5, 0.25],  # SlimCLR
    # SlimCLR: 8 images per process. With fewer, set True.
    sync_norms=False,
    # MMDetection's mean and standard deviation are those of pre-training.
    backbone=dict(
        _delete_=True,
        type='us3l_mm.SlimmableResNet',
        depth=50,
        out_indices=(0, 1, 2, 3),
        norm_eval=False,  # SlimCLR: batch norm is trained
        frozen_stages=-1,  # SlimCLR: all stages are trained
        style='pytorch',  # stride in the 3x3 convolution, as in pre-training
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.')))
# Pyramid and heads are MMDetection's, without norms, as are Detectron2's by
# default: statistics are measured for the backbone alone.

# SlimCLR: 8 processes x 8 images, learning rate 0.02 * 4, weight decay 1e-4,
# gradients clipped at a norm of 35
train_dataloader = dict(batch_size=8, num_workers=8)
optim_wrapper = dict(
    type='us3l_mm.MultiPassOptimWrapper',
    optimizer=dict(type='SGD', lr=0.08, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(max_norm=35, norm_type=2))
auto_scale_lr = dict(enable=False, base_batch_size=64)
# SlimCLR: 1x (12 epochs), warm-up of 500 iterations, steps after 8 and 11
# epochs; the start of the warm-up is MMDetection's.
param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(
        type='MultiStepLR',
        begin=0,
        end=12,
        by_epoch=True,
        milestones=[8, 11],
        gamma=0.1)
]

val_cfg = dict(_delete_=True, type='us3l_mm.WidthValLoop')
test_cfg = dict(_delete_=True, type='us3l_mm.WidthTestLoop')
model_wrapper_cfg = dict(type='us3l_mm.MultiPassDistributedDataParallel')

default_hooks = dict(
    preflight=dict(type='us3l_mm.PreflightHook'),
    # ours: 1000 images for all widths together
    calibration=dict(type='us3l_mm.CalibrationHook', num_images=1000),
    check_pretrained=dict(type='us3l_mm.CheckPretrainedHook'),
    check_annotations=dict(type='us3l_mm.CheckAnnotationsHook'))
