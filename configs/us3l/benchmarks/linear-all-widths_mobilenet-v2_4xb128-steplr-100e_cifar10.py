# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Linear classifiers of four widths, trained and validated together.
_base_ = './linear-all-widths_resnet18_4xb128-steplr-100e_cifar10.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='us3l_mm.SlimmableMobileNetV2_CIFAR',
        frozen_stages=8,  # all layers
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.')))
