# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# CIFAR-10 with labels, brought to the 224 pixels of the vision transformers.
_base_ = ['./cifar10.py']

train_pipeline = [
    # reference: torchvision's defaults, 0.08 to 1 of the area
    dict(type='RandomResizedCrop', scale=224, backend='pillow'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs')
]
test_pipeline = [
    # reference: 256 pixels, of which the middle 224
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs')
]
train_dataloader = dict(batch_size=256, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=256, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
