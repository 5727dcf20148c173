# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Images of your own, without labels, in one folder at any depth, as a start for
# a detector or a classifier of them: some hundred to some ten thousand.
#   python tools/train.py <this file> --cfg-options data_root=path/to/images
# For millions of images take the recipes of ImageNet (_in1k).
# All values that are not those of the CIFAR recipe are the project's own.
_base_ = [
    '../_base_/models/us3l_resnet18_cifar.py',
    '../_base_/schedules/cifar_sgd_coslr_400e.py',
    '../_base_/default_runtime.py',
]

# The stem of a detector: a quarter of the resolution
model = dict(backbone=dict(type='us3l_mm.SlimmableResNet'))

data_preprocessor = dict(
    type='SelfSupDataPreprocessor',
    # ImageNet's, in RGB order, as detectors expect; files are read as BGR
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)

data_root = 'data/own_images'
crop_size = 128
view_pipeline = [
    # `scale` is the output size. Things keep more of their size than in the
    # crops of ImageNet (0.2 to 1 of the area, made 224 pixels): a detector is
    # going to look at the whole image.
    dict(
        type='RandomResizedCrop',
        scale=crop_size,
        crop_ratio_range=(0.2, 1.0),
        backend='pillow'),
    dict(
        type='RandomFlip',
        prob=[0.25, 0.25],
        direction=['horizontal', 'vertical']),
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
    # A radius of 0.1 to 2 pixels, evenly drawn ('inf')
    dict(
        type='GaussianBlur',
        magnitude_range=(0.1, 2.0),
        magnitude_std='inf',
        prob=0.5),
]
train_pipeline = [
    dict(type='us3l_mm.SeedAugmentation'),
    dict(type='LoadImageFromFile'),
    dict(type='MultiView', num_views=[2], transforms=[view_pipeline]),
    dict(type='PackInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=crop_size, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=crop_size),
    dict(type='PackInputs')
]

train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    drop_last=True,  # batch statistics of a small rest would be noise
    sampler=dict(type='us3l_mm.SeededSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        with_label=False,
        pipeline=train_pipeline))

# Plain images, to calibrate with. For kNN they need labels: one sub-folder per
# class, and with_label=True.
knn_bank_dataloader = dict(
    batch_size=64,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        with_label=False,
        pipeline=test_pipeline))
knn_query_dataloader = knn_bank_dataloader

# 0.5 for a batch of 512 (reference), by the linear rule
optim_wrapper = dict(optimizer=dict(lr=0.0625))
auto_scale_lr = dict(enable=False, base_batch_size=64)
