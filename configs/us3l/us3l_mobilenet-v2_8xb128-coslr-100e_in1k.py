# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The recipe for ResNet-18 with a MobileNetV2. The reference has no ImageNet
# recipe for this network; this one is the project's own and has not been run.
_base_ = './us3l_resnet18_8xb128-coslr-100e_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='us3l_mm.SlimmableMobileNetV2',
        width_range=(0.25, 1.0),  # paper
        norm_cfg=dict(type='BN')),
    neck=dict(in_channels=1280))  # at every width
