# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's CIFAR recipe on BYOL: cosine losses, plain weight decay.
_base_ = './us3l_resnet18_4xb128-coslr-400e_cifar10.py'

# Projector and both predictors 2048-2048-2048
model = dict(base_method='byol', base_loss='cosine')

optim_wrapper = dict(optimizer=dict(
    lr=0.05,  # reference
    weight_decay=5e-4))  # reference, in place of group regularisation
custom_hooks = [
    hook for hook in _base_.custom_hooks if hook.type != 'us3l_mm.GroupRegHook'
]
