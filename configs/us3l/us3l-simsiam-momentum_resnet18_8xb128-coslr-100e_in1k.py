# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's ImageNet recipe for ResNet-18 on SimSiam with a momentum
# teacher: sub-networks are distilled by InfoNCE, with plain weight decay.
_base_ = './us3l_resnet18_8xb128-coslr-100e_in1k.py'

# Its projector has no last norm; layers are those of BYOL (reference).
model = dict(
    backbone=dict(zero_init_residual=True),  # reference
    distill_head=dict(
        loss=dict(
            _delete_=True,
            type='us3l_mm.InfoNCELoss',
            temperature=0.5,  # reference
            gather=True)))  # ours: as in the base loss of SimCLR

optim_wrapper = dict(optimizer=dict(
    weight_decay=1e-4))  # reference, in place of group regularisation
default_hooks = dict(group_reg=dict(lam=0.0))  # reference
