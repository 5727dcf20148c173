# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The demo against US3L's first guideline: the base pass compares the network's
# output with its own, moving output by an absolute distance. It collapses:
# spread_max in the log falls towards 0, and kNN towards chance.
_base_ = './us3l_resnet18_demo_digits.py'

model = dict(
    head=dict(loss=dict(_delete_=True, type='CosineSimilarityLoss')),
    base_from='online',
    distill_from='online',
    teacher=None)
