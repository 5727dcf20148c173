# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Dense + gated SSL on VICReg, with the stem for images of 32 pixels.
_base_ = './gated-vicreg_resnet18.py'

model = dict(
    backbone=dict(type='us3l_mm.GatedResNet_CIFAR',
                  stem_padding=2))  # reference: maps of 34 x 34 pixels
