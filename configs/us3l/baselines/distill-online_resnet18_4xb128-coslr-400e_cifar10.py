# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# US3L against its second guideline: sub-networks match the online full
# network instead of the momentum teacher.
_base_ = '../us3l_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(distill_from='online')
