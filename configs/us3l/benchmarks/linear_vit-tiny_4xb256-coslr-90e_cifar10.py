# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's linear evaluation of transformers, on CIFAR-10 at 224 pixels:
# a linear classifier on the class token of the frozen network of one width.
# Another width: --cfg-options model.backbone.width=0.5
_base_ = [
    '../../_base_/datasets/cifar10_labels.py',
    '../../_base_/default_runtime.py',
]

model = dict(
    type='us3l_mm.SubnetClassifier',
    backbone=dict(
        type='us3l_mm.SlimmableViT',
        arch='tiny',
        img_size=224,
        patch_size=16,
        slicing='input',
        positions='sincos',
        width=1.0,
        frozen_stages=12,
        # --cfg-options model.backbone.init_cfg.checkpoint=FILE, a checkpoint
        # of the pre-training: there are no statistics to measure.
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.')),
    neck=None,
    # in_channels follow the width.
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        init_cfg=dict(type='Normal', layer='Linear', std=0.01),  # reference
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5)))

train_pipeline = [
    dict(type='us3l_mm.SwapRedBlue'),
    # reference: torchvision's defaults, 0.08 to 1 of the area
    dict(type='RandomResizedCrop', scale=224, backend='pillow'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs')
]
test_pipeline = [
    dict(type='us3l_mm.SwapRedBlue'),
    # reference: the central 224 of 256 pixels
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs')
]
# 4 GPUs x 256 images = 1024 (reference)
train_dataloader = dict(batch_size=256, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=256, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
auto_scale_lr = dict(enable=False, base_batch_size=1024)

# MoCo v3's schedule
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='SGD',
        lr=0.1,  # reference, for a batch of 1024
        momentum=0.9,  # reference
        weight_decay=0.0))  # reference
# The curve is counted in iterations and ends where training ends.
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False)]
train_cfg = dict(by_epoch=True, max_epochs=90, val_interval=10)
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='accuracy/top1'))
