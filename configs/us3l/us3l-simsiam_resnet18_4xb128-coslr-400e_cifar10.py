# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# US3L on SimSiam: targets are the student's own output, and sub-networks are
# distilled from the online full network, through the one predictor. The paper
# warns that this collapses: spread_max in the log shows it. Learning rate and
# weight decay are those of BYOL (reference).
_base_ = './us3l-byol_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(
    neck=dict(
        # reference: the last norm has no affine parameters, and the bias in
        # front of it, which it takes away, does not train.
        with_last_bn=True,
        with_last_bn_affine=False,
        with_last_bias=False),
    distill_head=dict(
        _delete_=True,
        type='us3l_mm.PredictionHead',
        loss=dict(type='CosineSimilarityLoss')),  # reference
    base_from='online',
    distill_from='online',
    share_predictor=True,  # reference
    teacher=None)

default_hooks = dict(sampler=dict(num_stages=1))  # reference
