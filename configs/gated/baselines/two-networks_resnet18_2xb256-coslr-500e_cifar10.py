# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# A gated and a dense network that share no weights.
_base_ = '../gated_resnet18_2xb256-coslr-500e_cifar10.py'

model = dict(separate=True)
default_hooks = dict(knn=dict(widths=('gated', )))
