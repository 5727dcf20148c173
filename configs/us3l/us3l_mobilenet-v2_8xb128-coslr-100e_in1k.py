# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The recipe for ResNet-18 with a MobileNetV2. The reference has no ImageNet
# recipe for this network; this one is *ours* and has not been run.
_base_ = './us3l_resnet18_8xb128-coslr-100e_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='us3l_mm.SlimmableMobileNetV2',
        width_range=(0.25, 1.0),  # paper
        norm_cfg=dict(type='BN')),
    neck=dict(
        in_channels=1280,  # at every width
        init_cfg=[
            dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
            # reference: of the first layer
            dict(
                type='Normal',
                std=0.01,
                override=dict(type='Normal', name='fc0', std=0.01))
        ]))
