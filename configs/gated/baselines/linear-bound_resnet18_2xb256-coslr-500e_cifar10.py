# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The bounds close around the density that has the target's cost (ours).
_base_ = '../gated_resnet18_2xb256-coslr-500e_cifar10.py'

model = dict(budget=dict(bound='linear'))
