# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
_base_ = './linear-w100_vit-tiny_4xb256-coslr-90e_cifar10.py'

model = dict(backbone=dict(width=0.5))
