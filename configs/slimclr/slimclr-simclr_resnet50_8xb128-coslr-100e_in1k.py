# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's recipe for SimCLR.
_base_ = [
    '../_base_/models/slimclr-simclr_resnet50.py',
    '../_base_/datasets/imagenet_two-views.py',
    '../_base_/schedules/slimclr_lars-coslr-100e.py',
]

view_pipeline = [
    dict(
        type='RandomResizedCrop',
        scale=224,
        crop_ratio_range=(0.08, 1.0),  # reference
        backend='pillow'),
    dict(
        type='RandomApply',
        transforms=[
            dict(
                type='ColorJitter',
                brightness=0.8,  # reference
                contrast=0.8,  # reference
                saturation=0.8,  # reference
                hue=0.2,  # reference
                backend='cv2')
        ],
        prob=0.8),
    # Grey, blur (half of the images, reference) and flip as in MoCo v2.
    *_base_.view_pipeline[2:]
]
train_pipeline = [
    dict(type='us3l_mm.SeedAugmentation'),
    dict(type='LoadImageFromFile'),
    dict(type='MultiView', num_views=[2], transforms=[view_pipeline]),
    dict(type='PackInputs')
]

# 8 GPUs x 128 images = 1024 (reference)
train_dataloader = dict(
    batch_size=128, drop_last=True, dataset=dict(pipeline=train_pipeline))
auto_scale_lr = dict(enable=False, base_batch_size=1024)
