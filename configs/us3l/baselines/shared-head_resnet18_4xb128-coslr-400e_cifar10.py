# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# US3L against its third guideline: distillation goes through the predictor of
# the base pass, which this method does not have, so through none.
_base_ = '../us3l_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(share_head=True)
