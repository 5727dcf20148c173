# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The same for ResNet-20x4 with two widths.
_base_ = './linear-all-widths_resnet18_4xb128-steplr-100e_cifar10.py'

model = dict(
    backbone=dict(
        depth=20,
        base_channels=64,
        stem_channels=64,
        norm_cfg=dict(subnets=[1.0, 0.5])),
    head=dict(widths=[1.0, 0.5]))
