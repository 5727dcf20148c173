# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# As on CIFAR-10, with images of 224 pixels of 100 classes of ImageNet.
_base_ = './linear-both-modes_resnet18_1xb256-steplr-100e_cifar10.py'

data_preprocessor = dict(
    num_classes=100,
    mean=[123.675, 116.28, 103.53],
    std=[58.14, 57.12, 57.375])
model = dict(
    backbone=dict(type='us3l_mm.GatedResNet'), head=dict(num_classes=100))
optim_wrapper = dict(optimizer=dict(lr=0.3))  # solo-learn, for a batch of 256

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='RandomResizedCrop',
        scale=224,
        crop_ratio_range=(0.08, 1.0),  # reference
        backend='pillow'),
    dict(type='RandomFlip', prob=0.5),  # reference
    dict(type='PackInputs')
]
train_dataloader = dict(
    num_workers=8,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/imagenet100/train',
        pipeline=train_pipeline))
test_dataset = dict(
    _delete_=True,
    type='CustomDataset',
    data_root='data/imagenet100/val',
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='ResizeEdge', scale=256, edge='short', backend='pillow'),
        dict(type='CenterCrop', crop_size=224),
        dict(type='PackInputs')
    ])
val_dataloader = dict(num_workers=8, dataset=test_dataset)
test_dataloader = dict(num_workers=8, dataset=test_dataset)
