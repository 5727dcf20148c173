# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Ours, and not run: the reference has no ImageNet recipe for MobileNetV2. That
# for ResNet-18, with another backbone and nothing else.
_base_ = './us3l_resnet18_8xb128-coslr-100e_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='us3l_mm.SlimmableMobileNetV2',
        width_range=(0.25, 1.0),  # paper
        # Batch statistics per width while training, and no running ones;
        # tools/evaluate_widths.py measures them afterwards.
        norm_cfg=dict(type='BN')))
