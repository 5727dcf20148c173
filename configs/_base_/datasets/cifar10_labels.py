# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# CIFAR-10 with labels, which MMPretrain downloads where it is missing. It reads
# images in RGB order; a swap makes them BGR, as files are. Mean and standard
# deviation, in RGB order, are those of pre-training.
data_preprocessor = dict(
    type='ClsDataPreprocessor',
    num_classes=10,
    mean=[125.307, 122.961, 113.8575],
    std=[51.5865, 50.847, 51.255],
    to_rgb=True)

train_pipeline = [
    dict(type='us3l_mm.SwapRedBlue'),
    # reference: crops of 0.8 to 1 of the area, bicubic
    dict(
        type='RandomResizedCrop',
        scale=32,
        crop_ratio_range=(0.8, 1.0),
        interpolation='bicubic',
        backend='pillow'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs')
]
# reference: the central 32 of 36 pixels
test_pipeline = [
    dict(type='us3l_mm.SwapRedBlue'),
    dict(
        type='Resize',
        scale=(36, 36),
        interpolation='bicubic',
        backend='pillow'),
    dict(type='CenterCrop', crop_size=32),
    dict(type='PackInputs')
]

train_dataloader = dict(
    batch_size=128,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CIFAR10',
        data_root='data/cifar10',
        split='train',
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=512,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CIFAR10',
        data_root='data/cifar10',
        split='test',
        pipeline=test_pipeline))
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
