# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The full network has the weight of any other width.
_base_ = '../slimclr-mocov2_resnet18_4xb128-coslr-400e_cifar10.py'

default_hooks = dict(sampler=dict(weights='equal'))
