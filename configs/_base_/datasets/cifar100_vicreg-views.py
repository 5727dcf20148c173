# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# CIFAR-100, whose second view is blurred at times (reference). Otherwise as
# CIFAR-10, mean and standard deviation included (reference).
_base_ = './cifar10_vicreg-views.py'

blurred_view_pipeline = [
    _base_.view_pipeline[0],
    *_base_.colours,
    # 'inf' draws the radius, 0.1 to 2 pixels, from a uniform distribution.
    dict(
        type='GaussianBlur',
        magnitude_range=(0.1, 2.0),
        magnitude_std='inf',
        prob=0.2),  # reference
    *_base_.solarize_and_flip
]
train_pipeline = [
    dict(type='us3l_mm.SeedAugmentation'),
    dict(type='us3l_mm.SwapRedBlue'),
    dict(
        type='MultiView',
        num_views=[1, 1],
        transforms=[_base_.view_pipeline, blurred_view_pipeline]),
    dict(type='PackInputs')
]
train_dataloader = dict(
    dataset=dict(
        type='CIFAR100', data_root='data/cifar100', pipeline=train_pipeline))
knn_bank_dataloader = dict(
    dataset=dict(type='CIFAR100', data_root='data/cifar100'))
knn_query_dataloader = dict(
    dataset=dict(type='CIFAR100', data_root='data/cifar100'))
