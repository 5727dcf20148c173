# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Joint training without slow start, distillation and re-weighting.
_base_ = '../slimclr-mocov2_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(distill=None)
default_hooks = dict(sampler=dict(weights='equal', slow_start=0.0))
