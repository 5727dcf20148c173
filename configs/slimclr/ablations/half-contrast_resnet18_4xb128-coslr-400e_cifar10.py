# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Without distillation, and with half of the weight for the narrower widths:
# what the recipe comes to if its distillation has hardly any gradient.
_base_ = '../slimclr-mocov2_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(distill=None)
default_hooks = dict(sampler=dict(weights=[2.5, 0.5, 0.5, 0.5]))
