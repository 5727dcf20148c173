# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Barlow Twins in place of VICReg.
_base_ = '../gated_resnet18_2xb256-coslr-500e_cifar10.py'

model = dict(
    head=dict(
        loss=dict(
            _delete_=True,
            type='us3l_mm.BarlowTwinsLoss',
            off_diagonal=0.0051,  # reference
            scale=0.024,  # reference
            gather=False)))  # ours: as the statistics of VICReg
