# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The CIFAR recipe on a folder of images of any size, which are brought to 32
# pixels: CIFAR-10 as tools/dataset_converters/npz_to_folder.py writes it, or
# images of your own, at any depth of the folder and without labels:
#   python tools/train.py <this file> --cfg-options \
#       train_dataloader.dataset.data_root=<folder>
# There is no kNN during training, which would need labels.
_base_ = [
    '../_base_/models/us3l-simclr_resnet18_cifar.py',
    '../_base_/schedules/cifar_sgd-coslr-400e.py',
]

data_preprocessor = dict(
    type='SelfSupDataPreprocessor',
    # CIFAR-10's, in RGB order; files are read as BGR.
    mean=[125.307, 122.961, 113.8575],
    std=[51.5865, 50.847, 51.255],
    to_rgb=True)

# The reference's augmentation for CIFAR.
view_pipeline = [
    # `scale` is the output size; the crop covers 0.2 to 1 of the area.
    # Pillow antialiases where an image is larger than that.
    dict(
        type='RandomResizedCrop',
        scale=32,
        crop_ratio_range=(0.2, 1.0),
        backend='pillow'),
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
    dict(type='us3l_mm.LoadImage'),
    dict(type='MultiView', num_views=[2], transforms=[view_pipeline]),
    dict(type='PackInputs')
]
test_pipeline = [
    dict(type='us3l_mm.LoadImage'),
    dict(type='ResizeEdge', scale=32, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=32),
    dict(type='PackInputs')
]

train_dataloader = dict(
    batch_size=128,  # 4 GPUs x 128 images = 512 (reference)
    num_workers=4,
    # ours: of an unknown number of images, one may be left for a batch, and
    # it has no statistics.
    drop_last=True,
    sampler=dict(type='us3l_mm.SeededSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='us3l_mm.ImageFolder',
        data_root='data/cifar10_folder/train',
        with_label=False,
        pipeline=train_pipeline))

# For calibration; for kNN with labels too: one sub-folder per class.
knn_bank_dataloader = dict(
    batch_size=512,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='us3l_mm.ImageFolder',
        data_root='data/cifar10_folder/train',
        pipeline=test_pipeline))
knn_query_dataloader = dict(
    batch_size=512,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='us3l_mm.ImageFolder',
        data_root='data/cifar10_folder/test',
        pipeline=test_pipeline))

# The share of images that may turn out to be damaged during training.
default_hooks = dict(
    images=dict(type='us3l_mm.UnreadableImagesHook', max_share=0.01))

auto_scale_lr = dict(enable=False, base_batch_size=512)
