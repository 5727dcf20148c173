# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's CIFAR recipe for ResNet-50: feature distillation, and the
# sandwich rule over the whole range from the start.
_base_ = './us3l_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(
    backbone=dict(depth=50),
    neck=dict(in_channels=2048),
    feature_distiller=dict(
        # reference: 128, 256 and 512 channels, after the second norm of the
        # last blocks of stages 2 to 4. For the outputs of the stages:
        # modules=() and backbone.out_indices=(1, 2, 3).
        modules=('layer2.3.bn2', 'layer3.5.bn2', 'layer4.2.bn2'),
        with_bias=False,  # reference
        loss_weight=1.0))  # reference

# 8 GPUs x 64 images = 512 (reference)
train_dataloader = dict(batch_size=64)
auto_scale_lr = dict(enable=False, base_batch_size=512)
optim_wrapper = dict(optimizer=dict(lr=0.25))  # reference

default_hooks = dict(
    sampler=dict(num_stages=1),  # reference: no dynamic sampling
    group_reg=dict(warmup_epochs=200))  # reference: half of training
