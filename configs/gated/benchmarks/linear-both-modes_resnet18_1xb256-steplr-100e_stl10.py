# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# As on CIFAR-10, with images of 96 pixels from the folders of STL-10.
_base_ = './linear-both-modes_resnet18_1xb256-steplr-100e_cifar10.py'

data_preprocessor = dict(mean=[125.307, 122.9865, 113.883])
model = dict(backbone=dict(type='us3l_mm.GatedResNet'))

train_pipeline = [
    dict(type='us3l_mm.LoadImage'),
    dict(
        type='RandomResizedCrop',
        scale=96,
        crop_ratio_range=(0.08, 1.0),  # reference
        backend='pillow'),
    dict(type='RandomFlip', prob=0.5),  # reference
    dict(type='PackInputs')
]
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='us3l_mm.ImageFolder',
        data_root='data/stl10/train',
        pipeline=train_pipeline))
test_dataset = dict(
    _delete_=True,
    type='us3l_mm.ImageFolder',
    data_root='data/stl10/test',
    pipeline=[dict(type='us3l_mm.LoadImage'),
              dict(type='PackInputs')])
val_dataloader = dict(dataset=test_dataset)
test_dataloader = dict(dataset=test_dataset)
