# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# One linear classifier, whose leading columns the narrower widths use.
_base_ = './linear-all-widths_resnet18_4xb128-steplr-100e_cifar10.py'

model = dict(head=dict(shared=True))
