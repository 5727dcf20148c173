# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# US3L with plain weight decay.
_base_ = '../us3l_resnet18_4xb128-coslr-400e_cifar10.py'

# In place of group regularisation: twice its lam.
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
default_hooks = dict(group_reg=dict(lam=0.0))
