# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's linear evaluation on ImageNet: a linear classifier on the
# frozen network of one width. Another width: --cfg-options
# model.backbone.width=0.5
_base_ = [
    '../../_base_/datasets/imagenet_labels.py',
    '../../_base_/default_runtime.py',
]

model = dict(
    type='us3l_mm.SubnetClassifier',
    backbone=dict(
        type='us3l_mm.SlimmableResNet',
        depth=50,
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
        num_classes=1000,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5)))

# 8 GPUs x 256 images = 2048 (reference)
auto_scale_lr = dict(enable=False, base_batch_size=2048)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='LARS',
        lr=0.8,  # reference, for a batch of 2048
        momentum=0.9,  # reference
        weight_decay=0.0))  # reference
# The curve is counted in iterations and ends where training ends.
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False)]
train_cfg = dict(by_epoch=True, max_epochs=60, val_interval=5)
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='accuracy/top1'))
