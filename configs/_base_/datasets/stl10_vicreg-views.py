# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# STL-10: the 100,000 images without labels, and kNN on the labelled ones. They
# are read from folders, which configs/gated/README.md says how to write.
_base_ = './vicreg_views.py'

data_preprocessor = dict(
    type='SelfSupDataPreprocessor',
    mean=[125.307, 122.9865, 113.883],  # reference
    std=[62.985, 61.965, 66.555],  # reference
    to_rgb=True)

view_pipeline = [
    # `scale` is the output size; the crop covers 0.2 to 1 of the area.
    dict(
        type='RandomResizedCrop',
        scale=96,
        crop_ratio_range=(0.2, 1.0),  # reference
        interpolation='bicubic',  # reference
        backend='pillow'),
    *_base_.colours,
    *_base_.solarize_and_flip
]
train_pipeline = [
    dict(type='us3l_mm.SeedAugmentation'),
    dict(type='us3l_mm.LoadImage'),
    dict(type='MultiView', num_views=[2], transforms=[view_pipeline]),
    dict(type='PackInputs')
]
test_pipeline = [dict(type='us3l_mm.LoadImage'), dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=256,
    num_workers=8,
    drop_last=True,  # reference
    sampler=dict(type='us3l_mm.SeededSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='us3l_mm.ImageFolder',
        data_root='data/stl10/unlabeled',
        with_label=False,
        pipeline=train_pipeline))

# Labelled images for kNN: the queries are classified by the bank.
knn_bank_dataloader = dict(
    batch_size=256,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='us3l_mm.ImageFolder',
        data_root='data/stl10/train',
        pipeline=test_pipeline))
knn_query_dataloader = dict(
    batch_size=256,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='us3l_mm.ImageFolder',
        data_root='data/stl10/test',
        pipeline=test_pipeline))
