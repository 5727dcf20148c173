# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's CIFAR recipe on BYOL: cosine losses, plain weight decay.
_base_ = './us3l_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(
    neck=dict(
        out_channels=2048,  # reference
        with_bias=(True, False)),  # reference
    head=dict(
        predictor=dict(
            type='us3l_mm.Predictor',
            in_channels=2048,
            hid_channels=2048,  # reference
            out_channels=2048,
            num_layers=2,  # reference
            with_last_bn=False,  # reference
            with_last_bias=True),  # reference
        loss=dict(_delete_=True, type='CosineSimilarityLoss')),  # reference
    distill_head=dict(predictor=dict(in_channels=2048, out_channels=2048)))

train_dataloader = dict(drop_last=True)  # reference
optim_wrapper = dict(optimizer=dict(
    lr=0.05,  # reference
    weight_decay=5e-4))  # reference, in place of group regularisation
default_hooks = dict(group_reg=dict(lam=0.0))
