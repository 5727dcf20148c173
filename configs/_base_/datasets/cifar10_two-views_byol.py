# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# CIFAR-10 for vision transformers: images of 224 pixels, and the asymmetric
# pair of views of BYOL (reference; arXiv 2006.07733, appendix B). Otherwise as
# cifar10_two-views.py.
_base_ = ['./cifar10_two-views.py', './byol_views.py']

train_pipeline = [
    dict(type='us3l_mm.SeedAugmentation'),
    dict(type='us3l_mm.SwapRedBlue'),
    dict(
        type='MultiView',
        num_views=[1, 1],
        transforms=[_base_.view_pipeline1, _base_.view_pipeline2]),
    dict(type='PackInputs')
]
test_pipeline = [
    dict(type='us3l_mm.SwapRedBlue'),
    dict(type='Resize', scale=(224, 224), backend='pillow'),
    dict(type='PackInputs')
]

train_dataloader = dict(
    batch_size=64,
    drop_last=True,  # reference
    dataset=dict(pipeline=train_pipeline))
knn_bank_dataloader = dict(
    batch_size=128, dataset=dict(pipeline=test_pipeline))
knn_query_dataloader = dict(
    batch_size=128, dataset=dict(pipeline=test_pipeline))
