# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# `make demo DEMO=slimclr`: SlimCLR on the network and the digits of the demo of
# US3L. Four widths with norms of their own need no calibration. Values marked
# *demo* were tuned for five minutes on two cores, report included.
_base_ = '../us3l/us3l_resnet18_demo_digits.py'

widths = [1.0, 0.75, 0.5, 0.25]  # paper
model = dict(
    _delete_=True,
    type='us3l_mm.SlimCLR',
    backbone=dict(
        type='us3l_mm.SlimmableResNet',
        depth=18,
        # demo: half the channels of a ResNet-18, and its first three stages
        base_channels=32,
        stem_channels=32,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2, ),
        norm_cfg=dict(type='us3l_mm.SwitchableBatchNorm2d', subnets=widths)),
    # demo: an eighth of the size on ImageNet
    neck=dict(
        type='us3l_mm.SlimmableProjector',
        in_channels=128,
        hid_channels=256,
        out_channels=128,  # reference
        num_layers=2,  # reference
        slice_hidden=True,  # reference
        with_bias=True,  # reference: of SimCLR
        norm_cfg=dict(type='us3l_mm.SwitchableBatchNorm1d', subnets=widths)),
    head=dict(type='us3l_mm.SimCLRContrast', temperature=0.15),  # demo
    distill=dict(type='us3l_mm.SimilarityDistillation',
                 temperature=5.0),  # reference
    distill_weight=0.5)  # reference

train_cfg = dict(by_epoch=True, max_epochs=80)
optim_wrapper = dict(
    optimizer=dict(
        type='SGD',
        lr=0.2,  # demo
        momentum=0.9,  # reference
        weight_decay=1e-4))  # reference: of MoCo v2

default_hooks = dict(
    sampler=dict(
        _delete_=True,
        type='us3l_mm.DynamicSamplerHook',
        widths=widths,
        weights='full plus all',  # reference
        slow_start=0.5),  # reference
    group_reg=None)
