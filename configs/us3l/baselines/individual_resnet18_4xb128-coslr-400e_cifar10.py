# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# A network of one width trained on its own, with plain weight decay: the
# reference for a slice of that width of the US3L run. Another width:
# --cfg-options default_hooks.sampler.widths=[0.25]
# default_hooks.knn.widths=[0.25], with a --work-dir of its own.
_base_ = '../us3l_resnet18_4xb128-coslr-400e_cifar10.py'

# In place of group regularisation: twice its lam.
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
default_hooks = dict(
    sampler=dict(widths=[0.5]),
    group_reg=dict(lam=0.0),
    knn=dict(widths=[0.5]))
