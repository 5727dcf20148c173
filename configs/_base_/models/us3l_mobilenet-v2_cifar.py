# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# US3L on SimCLR with a momentum teacher, for 32-pixel images: as with a
# ResNet, behind features of 1280 channels at every width.
_base_ = './us3l_resnet18_cifar.py'

model = dict(
    backbone=dict(
        _delete_=True,
        # Strides of the stem and the second stage are 1 (reference).
        type='us3l_mm.SlimmableMobileNetV2_CIFAR',
        width_range=(0.25, 1.0),  # paper
        # Batch statistics per width while training, and no running ones;
        # tools/evaluate_widths.py measures them afterwards.
        norm_cfg=dict(type='BN')))
