# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's recipe for MoCo v3.
_base_ = [
    '../_base_/models/slimclr-mocov3_resnet50.py',
    '../_base_/datasets/imagenet_two-views_byol.py',
    '../_base_/schedules/slimclr_lars-coslr-100e.py',
]

# The views of transformers, whose crops cover 0.08 to 1 of the area, with
# crops of 0.2 to 1 (reference).
crop = dict(
    type='RandomResizedCrop',
    scale=224,
    crop_ratio_range=(0.2, 1.0),
    backend='pillow')
view_pipeline1 = [crop, *_base_.view_pipeline1[1:]]
view_pipeline2 = [crop, *_base_.view_pipeline2[1:]]
train_pipeline = [
    dict(type='us3l_mm.SeedAugmentation'),
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiView',
        num_views=[1, 1],
        transforms=[view_pipeline1, view_pipeline2]),
    dict(type='PackInputs')
]

# 8 GPUs x 128 images = 1024 (reference)
train_dataloader = dict(batch_size=128, dataset=dict(pipeline=train_pipeline))
auto_scale_lr = dict(enable=False, base_batch_size=1024)

optim_wrapper = dict(optimizer=dict(lr=1.2))  # reference
param_scheduler = [
    *_base_.param_scheduler,
    # reference: a rate of 3.2, along the same cosine, from the epoch on in
    # which all widths train. With another train_cfg.max_epochs, set half of
    # it here.
    dict(type='MultiStepLR', milestones=[150], gamma=3.2 / 1.2, by_epoch=True)
]
train_cfg = dict(max_epochs=300)
