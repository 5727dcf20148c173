# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Some hundred to some ten thousand images of your own, without labels, at any
# depth of one folder, as initial weights of a detector or a classifier:
#   python tools/train.py <this file> --cfg-options data_root=path/to/images
# For millions of images use the ImageNet recipes (_in1k). All values that are
# not those of the CIFAR recipe are *ours*.
_base_ = [
    '../_base_/models/us3l-simclr_resnet18_cifar.py',
    '../_base_/schedules/cifar_sgd-coslr-400e.py',
]

# The stem of detectors reduces the resolution to a quarter.
model = dict(backbone=dict(type='us3l_mm.SlimmableResNet'))

data_preprocessor = dict(
    type='SelfSupDataPreprocessor',
    # ImageNet's, in RGB order, as in detectors; files are read as BGR.
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)

data_root = 'data/own_images'
crop_size = 128
view_pipeline = [
    # `scale` is the output size. It is smaller than ImageNet's 224 pixels, so
    # that objects are magnified less: a detector sees the whole image.
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
    # 'inf' draws the radius, 0.1 to 2 pixels, from a uniform distribution.
    dict(
        type='GaussianBlur',
        magnitude_range=(0.1, 2.0),
        magnitude_std='inf',
        prob=0.5),
]
train_pipeline = [
    dict(type='us3l_mm.SeedAugmentation'),
    dict(type='us3l_mm.LoadImage'),
    dict(type='MultiView', num_views=[2], transforms=[view_pipeline]),
    dict(type='PackInputs')
]
test_pipeline = [
    dict(type='us3l_mm.LoadImage'),
    dict(type='ResizeEdge', scale=crop_size, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=crop_size),
    dict(type='PackInputs')
]

train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    # ours: of an unknown number of images, one may be left for a batch, and
    # it has no statistics.
    drop_last=True,
    sampler=dict(type='us3l_mm.SeededSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='us3l_mm.ImageFolder',
        data_root=data_root,
        with_label=False,
        pipeline=train_pipeline))

# Images without augmentation, for calibration and kNN: one in five, by a fixed
# seed, is a query. kNN needs labels, one sub-folder per class, and
# with_label=True in both data sets.
knn_bank_dataloader = dict(
    batch_size=64,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='us3l_mm.ImageFolder',
        data_root=data_root,
        split='train',
        with_label=False,
        pipeline=test_pipeline))
knn_query_dataloader = dict(
    knn_bank_dataloader,
    dataset=dict(knn_bank_dataloader['dataset'], split='val'))

# The share of images that may turn out to be damaged during training.
default_hooks = dict(
    images=dict(type='us3l_mm.UnreadableImagesHook', max_share=0.01))

# The linear rule, from 0.5 for a batch of 512 (reference)
optim_wrapper = dict(optimizer=dict(lr=0.0625))
auto_scale_lr = dict(enable=False, base_batch_size=64)
