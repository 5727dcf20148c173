# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The supervised control of SlimCLR: labels train all widths together, each
# with norms of its own.
_base_ = [
    '../_base_/datasets/imagenet_labels.py',
    '../_base_/schedules/slimclr_sgd-coslr-200e.py',
]

widths = [1.0, 0.75, 0.5, 0.25]  # paper
model = dict(
    type='us3l_mm.SlimmableClassifier',
    backbone=dict(
        type='us3l_mm.SlimmableResNet',
        depth=50,
        norm_cfg=dict(type='SwitchableBN', subnets=widths),
        zero_init_residual=True),  # reference
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='us3l_mm.SwitchableLinearHead',
        num_classes=1000,
        widths=widths,
        # One classifier, whose leading columns the narrower widths use, as in
        # slimmable networks (arXiv 1812.08928).
        shared=True,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5)),
    update_mode='accumulate')

# 4 GPUs x 128 images = 512 (reference)
train_dataloader = dict(batch_size=128)
auto_scale_lr = dict(enable=False, base_batch_size=512)
# The learning rate, 0.2, and the weight decay, 1e-4, are those of MoCo v2
# (reference).
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-9,  # 0 would stay 0 here
        end=5,  # reference
        by_epoch=True,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        begin=5,
        by_epoch=True,
        convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=100, val_interval=5)  # reference: 100 epochs

# Metrics are named accuracy/top1_w0.50 and so on.
val_cfg = dict(type='us3l_mm.WidthValLoop')
test_cfg = dict(type='us3l_mm.WidthTestLoop')
default_hooks = dict(
    sampler=dict(weights='equal', slow_start=0.0),  # reference: a plain sum
    collapse=None,
    checkpoint=dict(max_keep_ckpts=1, save_best='auto'))
