# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Two views of each image of CIFAR-10, which MMPretrain downloads where it is
# missing. It reads images in RGB order, and its colour operations are for BGR:
# pipelines begin with a swap. Mean and standard deviation are in RGB order.
data_preprocessor = dict(
    type='SelfSupDataPreprocessor',
    mean=[125.307, 122.961, 113.8575],  # reference
    std=[51.5865, 50.847, 51.255],  # reference
    to_rgb=True)

# The reference's augmentation, which has no blur at this size.
view_pipeline = [
    # `scale` is the output size; the crop covers 0.2 to 1 of the area.
    dict(type='RandomResizedCrop', scale=32, crop_ratio_range=(0.2, 1.0)),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomApply',
        transforms=[
            dict(
                type='ColorJitter',
                brightness=0.4,
                contrast=0.4,
                saturation=0.4,
                hue=0.1,
                backend='cv2')
        ],
        prob=0.8),
    dict(
        type='RandomGrayscale',
        prob=0.2,
        keep_channels=True,
        channel_weights=(0.114, 0.587, 0.2989)),  # of blue, green, red
]
train_pipeline = [
    dict(type='us3l_mm.SeedAugmentation'),
    dict(type='us3l_mm.SwapRedBlue'),
    dict(type='MultiView', num_views=[2], transforms=[view_pipeline]),
    dict(type='PackInputs')
]
test_pipeline = [dict(type='us3l_mm.SwapRedBlue'), dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=128,
    num_workers=4,
    drop_last=False,  # reference
    sampler=dict(type='us3l_mm.SeededSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CIFAR10',
        data_root='data/cifar10',
        split='train',
        pipeline=train_pipeline))

# Labelled images for kNN: the queries are classified by the bank.
knn_bank_dataloader = dict(
    batch_size=512,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CIFAR10',
        data_root='data/cifar10',
        split='train',
        pipeline=test_pipeline))
knn_query_dataloader = dict(
    batch_size=512,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CIFAR10',
        data_root='data/cifar10',
        split='test',
        pipeline=test_pipeline))
