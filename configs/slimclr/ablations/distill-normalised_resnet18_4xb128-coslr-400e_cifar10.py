# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The KL divergence between standardised similarities (ATKD).
_base_ = '../slimclr-mocov2_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(distill=dict(normalise=True, temperature=4.0))  # reference
