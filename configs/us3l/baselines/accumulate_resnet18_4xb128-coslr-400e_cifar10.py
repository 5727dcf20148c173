# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# US3L with one optimizer step per batch, from the summed gradients of all
# widths, as in US-Nets (arXiv 1903.05134).
_base_ = '../us3l_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(update_mode='accumulate')
