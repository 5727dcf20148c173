# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Switchable linear classifiers of all widths on CIFAR-10; the reference has no
# such recipe. The rate is that of US3L's recipe.
_base_ = [
    '../../_base_/datasets/cifar10_labels.py',
    '../../_base_/default_runtime.py',
]

model = dict(
    type='us3l_mm.AllWidthsClassifier',
    backbone=dict(
        type='us3l_mm.SlimmableResNet_CIFAR',
        depth=18,
        norm_cfg=dict(type='SwitchableBN', subnets=[1.0, 0.75, 0.5, 0.25]),
        # --cfg-options model.backbone.init_cfg.checkpoint=FILE, a checkpoint
        # of the pre-training.
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='us3l_mm.SwitchableLinearHead',
        num_classes=10,
        widths=[1.0, 0.75, 0.5, 0.25],
        distill_weight=0.5,  # reference, on ImageNet
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5)))

# 4 GPUs x 128 images = 512 (ours)
auto_scale_lr = dict(enable=False, base_batch_size=512)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='SGD',
        lr=30.0,  # ours, for a batch of 512: 60 for 1024, as on ImageNet
        momentum=0.9,
        weight_decay=0.0))
param_scheduler = [
    dict(type='MultiStepLR', milestones=[60, 80], gamma=0.1, by_epoch=True)
]
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=10)

# Metrics are named accuracy/top1_w0.50 and so on.
val_cfg = dict(type='us3l_mm.WidthValLoop')
test_cfg = dict(type='us3l_mm.WidthTestLoop')
default_hooks = dict(
    frozen=dict(type='us3l_mm.CheckFrozenHook'),
    # 'auto' selects by the widest; accuracy/top1_w0.50 and so on by another.
    checkpoint=dict(max_keep_ckpts=1, save_best='auto'))
