# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# A classifier of your own images: FOLDER has one folder of images for each
# class, and one image in five, by a fixed seed, tests the classifier.
#   python tools/train.py <this file> --cfg-options data_root=FOLDER \
#       model.head.num_classes=5 model.backbone.width=0.5 \
#       model.backbone.init_cfg.checkpoint=FILE
# where FILE is a checkpoint of us3l_resnet18_1xb64-coslr-400e_own-images.py or
# of `us3l pretrain`. If that run had crops of 64 pixels or less, copy this
# file, and set crop_size to theirs and the type of the backbone to
# us3l_mm.SlimmableResNet_CIFAR. All values are the project's own and untuned.
_base_ = '../../_base_/default_runtime.py'

model = dict(
    type='us3l_mm.SubnetClassifier',
    backbone=dict(
        type='us3l_mm.SlimmableResNet',
        depth=18,
        width=1.0,
        # All norms are trained, so they need no measured statistics.
        missing_statistics='reset',
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.')),
    neck=dict(type='GlobalAveragePooling'),
    # in_channels follow the width.
    head=dict(
        type='LinearClsHead',
        num_classes=2,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, )))

data_preprocessor = dict(
    type='ClsDataPreprocessor',
    # As in pre-training: ImageNet's, in RGB order.
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)

data_root = 'data/own_images'
crop_size = 128
train_pipeline = [
    dict(type='us3l_mm.LoadImage'),
    dict(
        type='RandomResizedCrop',
        scale=crop_size,
        crop_ratio_range=(0.2, 1.0),
        backend='pillow'),
    dict(type='RandomFlip', prob=0.5),
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
    drop_last=True,  # the last batch may be of one image
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='us3l_mm.ImageFolder',
        data_root=data_root,
        split='train',
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='us3l_mm.ImageFolder',
        data_root=data_root,
        split='val',
        pipeline=test_pipeline))
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.0125, momentum=0.9, weight_decay=5e-4))
# The curve is counted in iterations and ends where training ends.
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False)]
auto_scale_lr = dict(enable=False, base_batch_size=64)
train_cfg = dict(by_epoch=True, max_epochs=60, val_interval=5)
default_hooks = dict(
    # The share of images that may turn out to be damaged during training.
    images=dict(type='us3l_mm.UnreadableImagesHook', max_share=0.01),
    checkpoint=dict(max_keep_ckpts=1, save_best='accuracy/top1'))
