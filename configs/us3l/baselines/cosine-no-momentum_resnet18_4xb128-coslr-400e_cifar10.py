# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# US3L against its first guideline: an absolute base loss, the cosine, against
# the network's own moving output instead of a momentum teacher's. Projector
# and heads stay those of the recipe, without a predictor in the base pass. It
# collapses: spread_max in the log falls towards 0 (seen on rendered digits).
_base_ = '../us3l_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(
    head=dict(loss=dict(_delete_=True, type='CosineSimilarityLoss')),
    base_from='online',
    distill_from='online',
    teacher=None)
