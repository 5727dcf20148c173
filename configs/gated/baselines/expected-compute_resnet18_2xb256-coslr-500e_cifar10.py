# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The budget is that of the probabilities of channels to be on, not of the masks
# that were drawn (ours).
_base_ = '../gated_resnet18_2xb256-coslr-500e_cifar10.py'

model = dict(budget=dict(expected=True))
