# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Which of the two views is gated is drawn in every iteration (ours).
_base_ = '../gated_resnet18_2xb256-coslr-500e_cifar10.py'

model = dict(swap_views=True)
