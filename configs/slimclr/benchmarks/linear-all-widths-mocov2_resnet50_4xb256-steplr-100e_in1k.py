# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's linear evaluation of MoCo v2: switchable linear classifiers
# of all widths, trained and validated together. The norms of the widths are
# private, so that there is nothing to calibrate.
_base_ = [
    '../../_base_/datasets/imagenet_labels.py',
    '../../_base_/default_runtime.py',
]

model = dict(
    type='us3l_mm.AllWidthsClassifier',
    backbone=dict(
        type='us3l_mm.SlimmableResNet',
        depth=50,
        norm_cfg=dict(type='SwitchableBN', subnets=[1.0, 0.75, 0.5, 0.25]),
        # --cfg-options model.backbone.init_cfg.checkpoint=FILE, a checkpoint
        # of the pre-training.
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='us3l_mm.SwitchableLinearHead',
        num_classes=1000,
        widths=[1.0, 0.75, 0.5, 0.25],  # reference
        # Distillation from the classifier of the full width; 0.0 is without.
        distill_weight=0.5,  # reference
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5)))

# 4 GPUs x 256 images = 1024 (reference)
train_dataloader = dict(batch_size=256)
auto_scale_lr = dict(enable=False, base_batch_size=1024)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='SGD',
        lr=60.0,  # reference, for a batch of 1024 and all widths
        momentum=0.9,  # reference
        weight_decay=0.0))  # reference
param_scheduler = [
    dict(type='MultiStepLR', milestones=[60, 80], gamma=0.1, by_epoch=True)
]
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=5)

# Metrics are named accuracy/top1_w0.50 and so on.
val_cfg = dict(type='us3l_mm.WidthValLoop')
test_cfg = dict(type='us3l_mm.WidthTestLoop')
default_hooks = dict(
    frozen=dict(type='us3l_mm.CheckFrozenHook'),
    # 'auto' selects by the widest; accuracy/top1_w0.50 and so on by another.
    checkpoint=dict(max_keep_ckpts=1, save_best='auto'))
