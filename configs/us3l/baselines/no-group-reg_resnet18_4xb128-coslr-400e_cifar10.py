# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# US3L with plain weight decay.
_base_ = '../us3l_resnet18_4xb128-coslr-400e_cifar10.py'

# weight_decay instead of group regularisation: twice its lam
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
custom_hooks = [
    hook for hook in _base_.custom_hooks if hook.type != 'us3l_mm.GroupRegHook'
]
