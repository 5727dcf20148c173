# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The paper's small experiment on CIFAR-10 with labels: two widths of a
# ResNet-20x4 together. The reference names network, widths and a step per
# width; the rest is *ours* and has not been run.
_base_ = [
    '../_base_/datasets/cifar10_labels.py',
    '../_base_/schedules/slimclr_sgd-coslr-200e.py',
]

widths = [1.0, 0.5]
model = dict(
    type='us3l_mm.SlimmableClassifier',
    backbone=dict(
        type='us3l_mm.SlimmableResNet_CIFAR',
        depth=20,
        base_channels=64,
        stem_channels=64,
        norm_cfg=dict(type='SwitchableBN', subnets=widths)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='us3l_mm.SwitchableLinearHead',
        num_classes=10,
        widths=widths,
        shared=True,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5)),
    update_mode='sequential')

# 4 GPUs x 128 images = 512
train_dataloader = dict(batch_size=128)
auto_scale_lr = dict(enable=False, base_batch_size=512)
optim_wrapper = dict(optimizer=dict(lr=0.4, weight_decay=5e-4))
train_cfg = dict(val_interval=10)

# Metrics are named accuracy/top1_w0.50 and so on.
val_cfg = dict(type='us3l_mm.WidthValLoop')
test_cfg = dict(type='us3l_mm.WidthTestLoop')
default_hooks = dict(
    sampler=dict(widths=widths, weights='equal', slow_start=0.0),
    collapse=None,
    checkpoint=dict(max_keep_ckpts=1, save_best='auto'))
