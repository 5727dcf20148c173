# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's linear evaluation on CIFAR-10: a linear classifier on the
# frozen network of one width. Another width: --cfg-options
# model.backbone.width=0.5
_base_ = [
    '../../_base_/datasets/cifar10_labels.py',
    '../../_base_/default_runtime.py',
]

model = dict(
    type='us3l_mm.SubnetClassifier',
    backbone=dict(
        type='us3l_mm.SlimmableResNet_CIFAR',
        depth=18,
        width=1.0,
        frozen_stages=4,
        norm_eval=True,
        # --cfg-options model.backbone.init_cfg.checkpoint=FILE, as
        # tools/evaluate_widths.py --save-checkpoint FILE writes it.
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.')),
    neck=dict(type='GlobalAveragePooling'),
    # in_channels follow the width.
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5)))

# 4 GPUs x 128 images = 512 (reference)
auto_scale_lr = dict(enable=False, base_batch_size=512)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='SGD',
        lr=30.0,  # reference, for a batch of 512
        momentum=0.9,  # reference
        weight_decay=0.0))  # reference
param_scheduler = [
    dict(type='MultiStepLR', milestones=[60, 80], gamma=0.1, by_epoch=True)
]
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=10)
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='accuracy/top1'))
