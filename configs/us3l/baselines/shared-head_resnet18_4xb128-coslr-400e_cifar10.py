# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# US3L against its third guideline: distillation goes through the predictor of
# the base pass. SimCLR has none, so the embeddings themselves are compared.
_base_ = '../us3l_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(
    distill_head=dict(
        _delete_=True,
        type='us3l_mm.PredictionHead',
        loss=dict(type='CosineSimilarityLoss')),
    share_predictor=True)
