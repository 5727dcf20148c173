# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's CIFAR recipe for ResNet-50: feature distillation, and the
# sandwich rule over the whole range from the start.
_base_ = './us3l_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(
    # The outputs of stages 2 to 4; the reference takes maps inside their last
    # blocks.
    backbone=dict(depth=50, out_indices=(1, 2, 3)),
    neck=dict(in_channels=2048),
    feature_distiller=dict(loss_weight=1.0))  # reference

# 8 GPUs x 64 images = 512 (reference)
train_dataloader = dict(batch_size=64)
auto_scale_lr = dict(enable=False, base_batch_size=512)
optim_wrapper = dict(optimizer=dict(lr=0.25))  # reference

default_hooks = dict(
    sampler=dict(num_stages=1),  # reference: no dynamic sampling
    group_reg=dict(warmup_epochs=200))  # reference: half of training
