# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# A gated network alone, by VICReg: both views are gated, and the losses of their
# budgets are added up.
_base_ = '../gated_resnet18_2xb256-coslr-500e_cifar10.py'

model = dict(modes=('gated', 'gated'))
default_hooks = dict(knn=dict(widths=('gated', )))
