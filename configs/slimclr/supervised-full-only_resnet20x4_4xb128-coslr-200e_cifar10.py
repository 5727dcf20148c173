# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The same small experiment with a loss of the full network alone. The norms
# of the other width follow its weights, so that it can be evaluated.
_base_ = './supervised-joint_resnet20x4_4xb128-coslr-200e_cifar10.py'

model = dict(update_mode='accumulate')
default_hooks = dict(sampler=dict(weights=[1.0, 0.0]))
