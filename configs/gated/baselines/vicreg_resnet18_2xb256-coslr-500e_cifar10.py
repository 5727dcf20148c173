# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# VICReg alone: both views go through the dense network, and the gates wait.
_base_ = '../gated_resnet18_2xb256-coslr-500e_cifar10.py'

model = dict(modes=('dense', 'dense'), budget=None)
default_hooks = dict(knn=dict(widths=('dense', )))
