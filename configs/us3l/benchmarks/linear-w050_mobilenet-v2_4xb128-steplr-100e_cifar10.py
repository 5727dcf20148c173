# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
_base_ = './linear-w100_mobilenet-v2_4xb128-steplr-100e_cifar10.py'

model = dict(backbone=dict(width=0.5))
