# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's linear evaluation on CIFAR-10, of a MobileNetV2. Another
# width: --cfg-options model.backbone.width=0.5
_base_ = './linear_resnet18_4xb128-steplr-100e_cifar10.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='us3l_mm.SlimmableMobileNetV2_CIFAR',
        width=1.0,
        frozen_stages=8,  # all layers
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.')))
