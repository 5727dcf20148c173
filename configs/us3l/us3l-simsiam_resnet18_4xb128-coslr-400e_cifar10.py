# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# SimSiam as base method: targets are the student's own, and sub-networks are
# distilled from the online full network. The paper warns that this collapses:
# look at spread_max in the log. Learning rate and weight decay as for BYOL
# (reference).
_base_ = './us3l-byol_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(base_method='simsiam', distill_from='online')

# No dynamic sampling (reference)
custom_hooks = [
    dict(hook, num_stages=1)
    if hook.type == 'us3l_mm.DynamicSamplerHook' else hook
    for hook in _base_.custom_hooks
]
