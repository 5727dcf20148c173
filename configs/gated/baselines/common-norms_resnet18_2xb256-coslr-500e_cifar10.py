# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Both modes have the same norms.
_base_ = '../gated_resnet18_2xb256-coslr-500e_cifar10.py'

model = dict(backbone=dict(norm_cfg=dict(type='BN')))
