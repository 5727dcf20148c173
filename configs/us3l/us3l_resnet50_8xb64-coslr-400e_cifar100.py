# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's CIFAR recipe for ResNet-50: with feature distillation, with
# sandwich sampling over the whole range from the start.
_base_ = './us3l_resnet18_4xb128-coslr-400e_cifar100.py'

model = dict(
    # The outputs of stages 2 to 4; the reference takes maps inside their last
    # blocks.
    backbone=dict(depth=50, out_indices=(1, 2, 3)),
    feature_distill=dict(loss_weight=1.0))  # reference

# 8 GPUs x 64 images = 512 (reference)
train_dataloader = dict(batch_size=64)
auto_scale_lr = dict(enable=False, base_batch_size=512)
optim_wrapper = dict(optimizer=dict(lr=0.25))  # reference

# No dynamic sampling, and plain decay for half of training (reference)
custom_hooks = [
    dict(hook, num_stages=1) if hook.type == 'us3l_mm.DynamicSamplerHook' else
    dict(hook, warmup_epochs=200)
    if hook.type == 'us3l_mm.GroupRegHook' else hook
    for hook in _base_.custom_hooks
]
