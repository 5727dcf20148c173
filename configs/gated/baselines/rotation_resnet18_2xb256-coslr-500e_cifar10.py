# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The dense view is rotated, and its features tell by how much.
_base_ = '../gated_resnet18_2xb256-coslr-500e_cifar10.py'

model = dict(rotation=dict(hid_channels=2048, weight=0.2))  # reference
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'rotation': dict(lr_mult=1 /
                                                     6)}))  # reference: 0.1
