# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# ImageNet-100: a folder of 100 classes of ImageNet-1k, named by their WordNet
# identifiers, in either of train/ and val/.
_base_ = './vicreg_views.py'

data_preprocessor = dict(
    type='SelfSupDataPreprocessor',
    mean=[123.675, 116.28, 103.53],  # reference
    std=[58.14, 57.12,
         57.375],  # reference: 0.228 of red, where most have 0.229
    to_rgb=True)

view_pipeline = [
    # `scale` is the output size; the crop covers 0.2 to 1 of the area.
    dict(
        type='RandomResizedCrop',
        scale=224,
        crop_ratio_range=(0.2, 1.0),  # reference
        interpolation='bicubic',  # reference
        backend='pillow'),
    *_base_.colours,
    *_base_.solarize_and_flip
]
train_pipeline = [
    dict(type='us3l_mm.SeedAugmentation'),
    dict(type='LoadImageFromFile'),
    dict(type='MultiView', num_views=[2], transforms=[view_pipeline]),
    dict(type='PackInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs')
]

train_dataloader = dict(
    batch_size=256,
    num_workers=8,
    drop_last=True,  # reference
    sampler=dict(type='us3l_mm.SeededSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root='data/imagenet100/train',
        with_label=False,
        pipeline=train_pipeline))

# Labelled images for kNN: the queries are classified by the bank.
knn_bank_dataloader = dict(
    batch_size=256,
    num_workers=8,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root='data/imagenet100/train',
        pipeline=test_pipeline))
knn_query_dataloader = dict(
    batch_size=256,
    num_workers=8,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root='data/imagenet100/val',
        pipeline=test_pipeline))
