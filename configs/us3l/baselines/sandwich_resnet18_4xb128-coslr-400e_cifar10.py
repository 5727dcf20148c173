# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# US3L without dynamic sampling: the whole range from the start.
_base_ = '../us3l_resnet18_4xb128-coslr-400e_cifar10.py'

default_hooks = dict(sampler=dict(num_stages=1))
