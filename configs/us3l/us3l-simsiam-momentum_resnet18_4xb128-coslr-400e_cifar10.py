# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# SimSiam with a momentum teacher. The reference has no recipe for it: learning
# rate, weight decay and sampling are those of its BYOL recipe, untested here.
_base_ = './us3l-byol_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(base_method='simsiam_momentum')
