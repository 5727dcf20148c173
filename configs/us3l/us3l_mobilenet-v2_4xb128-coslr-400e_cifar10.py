# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's CIFAR recipe for MobileNetV2: that for ResNet-18, with the
# sandwich rule over the whole range from the start.
_base_ = './us3l_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(
    backbone=dict(
        _delete_=True,
        # Strides of the stem and the second stage are 1 (reference).
        type='us3l_mm.SlimmableMobileNetV2_CIFAR',
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

default_hooks = dict(
    sampler=dict(num_stages=1),  # reference: no dynamic sampling
    group_reg=dict(warmup_epochs=200))  # reference: half of training
