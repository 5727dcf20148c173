# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# A network of width 0.5 trained on its own, with plain weight decay: what a
# width cut out of the US3L run is compared to.
_base_ = '../us3l_resnet18_4xb128-coslr-400e_cifar10.py'

# weight_decay instead of group regularisation: twice its lam
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
custom_hooks = [
    dict(type='us3l_mm.DynamicSamplerHook', widths=[0.5])
    if hook.type == 'us3l_mm.DynamicSamplerHook' else
    dict(hook, widths=[0.5]) if hook.type == 'us3l_mm.WidthKNNHook' else hook
    for hook in _base_.custom_hooks if hook.type != 'us3l_mm.GroupRegHook'
]
