# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The gates begin after 10 of the 500 epochs (reference).
_base_ = '../gated_resnet18_2xb256-coslr-500e_cifar10.py'

model = dict(gate_warmup=0.02)
