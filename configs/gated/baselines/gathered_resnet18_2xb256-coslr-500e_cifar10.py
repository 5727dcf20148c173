# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The statistics of VICReg are those of the images of all processes (ours).
_base_ = '../gated_resnet18_2xb256-coslr-500e_cifar10.py'

model = dict(head=dict(loss=dict(gather=True)))
