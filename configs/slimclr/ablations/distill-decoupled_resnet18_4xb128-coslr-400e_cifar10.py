# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The KL divergence split into that of the own key and that among the others
# (DKD).
_base_ = '../slimclr-mocov2_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(distill=dict(kind='decoupled', temperature=1.0))  # reference
