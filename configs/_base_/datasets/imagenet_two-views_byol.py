# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# ImageNet-1k for vision transformers: BYOL's asymmetric pair of views
# (reference; arXiv 2006.07733, appendix B). Otherwise as
# imagenet_two-views.py.
_base_ = ['./imagenet_two-views.py', './byol_views.py']

train_pipeline = [
    dict(type='us3l_mm.SeedAugmentation'),
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiView',
        num_views=[1, 1],
        transforms=[_base_.view_pipeline1, _base_.view_pipeline2]),
    dict(type='PackInputs')
]
train_dataloader = dict(
    batch_size=256,
    drop_last=True,  # reference
    dataset=dict(pipeline=train_pipeline))
