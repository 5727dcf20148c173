# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# SimSiam with a momentum teacher on CIFAR-10. The reference has recipes for
# ImageNet, and none for CIFAR: this one is *ours*, with the learning rate, the
# weight decay and the sampling of its BYOL recipe, and has not been run.
_base_ = './us3l-byol_resnet18_4xb128-coslr-400e_cifar10.py'

# Its projector has no last norm; layers are those of BYOL (reference).
model = dict(
    backbone=dict(zero_init_residual=True),  # reference, for ImageNet
    distill_head=dict(
        loss=dict(
            _delete_=True,
            type='us3l_mm.InfoNCELoss',
            temperature=0.5,  # reference
            gather=True)))  # ours: as in the base loss of SimCLR
