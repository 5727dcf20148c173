# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Linear classifiers of both modes on the frozen network, trained at once; they
# have nothing in common. One mode: --cfg-options model.head.widths=[gated]
# The authors have released no such recipe. Values marked *solo-learn* are those
# of the library that they use.
_base_ = [
    '../../_base_/datasets/cifar10_labels.py',
    '../../_base_/default_runtime.py',
]

# Those of pre-training.
data_preprocessor = dict(
    mean=[125.307, 122.961, 113.8575], std=[62.985, 61.965, 66.555])

model = dict(
    type='us3l_mm.AllWidthsClassifier',
    backbone=dict(
        type='us3l_mm.GatedResNet_CIFAR',
        depth=18,
        # --cfg-options model.backbone.init_cfg.checkpoint=FILE, a checkpoint
        # of the pre-training, or one with a threshold for a budget.
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='us3l_mm.SwitchableLinearHead',
        num_classes=10,
        widths=['dense', 'gated'],
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5)))

train_pipeline = [
    dict(type='us3l_mm.SwapRedBlue'),
    dict(
        type='RandomResizedCrop',
        scale=32,
        crop_ratio_range=(0.08, 1.0),  # reference
        backend='pillow'),
    dict(type='RandomFlip', prob=0.5),  # reference
    dict(type='PackInputs')
]
test_pipeline = [dict(type='us3l_mm.SwapRedBlue'), dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=256,  # solo-learn
    dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
auto_scale_lr = dict(enable=False, base_batch_size=256)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='SGD',
        lr=0.1,  # solo-learn, for a batch of 256
        momentum=0.9,
        weight_decay=0.0))  # solo-learn
param_scheduler = [
    dict(  # solo-learn
        type='MultiStepLR',
        milestones=[60, 80],
        gamma=0.1,
        by_epoch=True)
]
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=10)

# Metrics are named accuracy/top1_w1.00 (dense) and accuracy/top1_gated.
val_cfg = dict(type='us3l_mm.WidthValLoop')
test_cfg = dict(type='us3l_mm.WidthTestLoop')
default_hooks = dict(
    frozen=dict(type='us3l_mm.CheckFrozenHook'),
    # 'auto' selects by the dense mode, accuracy/top1_gated by the other.
    checkpoint=dict(max_keep_ckpts=1, save_best='auto'))
