# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Each width learns from the mean over all larger ones.
_base_ = '../slimclr-mocov2_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(distill_from='larger')
