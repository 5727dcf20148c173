# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# CIFAR-10 with the views of dense + gated SSL. Otherwise as
# cifar10_two-views.py.
_base_ = ['./cifar10_two-views.py', './vicreg_views.py']

data_preprocessor = dict(
    mean=[125.307, 122.961, 113.8575],  # reference
    std=[62.985, 61.965, 66.555])  # reference

view_pipeline = [
    # `scale` is the output size; the crop covers 0.2 to 1 of the area.
    dict(
        type='RandomResizedCrop',
        scale=32,
        crop_ratio_range=(0.2, 1.0),  # reference
        interpolation='bicubic',  # reference
        backend='pillow'),
    *_base_.colours,
    *_base_.solarize_and_flip
]
train_pipeline = [
    dict(type='us3l_mm.SeedAugmentation'),
    dict(type='us3l_mm.SwapRedBlue'),
    dict(type='MultiView', num_views=[2], transforms=[view_pipeline]),
    dict(type='PackInputs')
]
train_dataloader = dict(
    batch_size=256,
    drop_last=True,  # reference
    dataset=dict(pipeline=train_pipeline))
