# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# `make demo DEMO=gated`: dense + gated SSL on the network and the digits of the
# demo of US3L. Values marked *demo* were tuned for five minutes on two cores,
# report included.
_base_ = '../us3l/us3l_resnet18_demo_digits.py'

model = dict(
    _delete_=True,
    type='us3l_mm.DenseGatedSSL',
    backbone=dict(
        type='us3l_mm.GatedResNet',
        depth=18,
        # demo: half the channels of a ResNet-18, and its first three stages
        base_channels=32,
        stem_channels=32,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2, ),
        norm_cfg=dict(type='SwitchableBN')),  # reference
    # demo: an eighth of the reference's projector
    neck=dict(
        type='us3l_mm.SlimmableProjector',
        in_channels=128,
        hid_channels=256,
        out_channels=256,
        num_layers=3,  # reference
        with_last_bn=False),  # reference
    head=dict(
        type='us3l_mm.PairHead',
        loss=dict(
            type='us3l_mm.VICRegLoss',
            invariance=25.0,  # reference
            variance=25.0,  # reference
            covariance=1.0)),  # reference
    budget=dict(
        target=0.5,  # paper
        weight=5.0,  # reference
        bound='sqrt',  # reference
        anneal=10.0))  # reference: 0.02 an epoch, for 500 epochs

train_cfg = dict(by_epoch=True, max_epochs=60)
optim_wrapper = dict(
    optimizer=dict(
        _delete_=True,
        type='us3l_mm.LARS',
        lr=0.5,  # demo: 1.0 diverges, and so does SGD with 0.5
        eta=0.02,  # reference
        clip=False,  # demo: the rate of every layer falls with the schedule
        momentum=0.9,  # reference
        weight_decay=1e-4,  # reference
        exclude_flat=True),  # reference: norms and biases
    # Gates have no weight decay (reference).
    paramwise_cfg=dict(custom_keys={'.gate': dict(decay_mult=0.0)}))
# reference: a fiftieth of training warms up
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.005,
        by_epoch=True,
        begin=0,
        end=2,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        by_epoch=True,
        begin=2,
        convert_to_iter_based=True)
]

default_hooks = dict(
    sampler=dict(
        _delete_=True, type='us3l_mm.DynamicSamplerHook', widths=['dense']),
    group_reg=None)
