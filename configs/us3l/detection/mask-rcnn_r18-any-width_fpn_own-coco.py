# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Mask R-CNN on a data set of your own in COCO format:
#   FOLDER/annotations/instances_{train,val}.json beside FOLDER/train/ and val/
#   python tools/train.py <this file> --cfg-options data_root=FOLDER \
#       model.backbone.width=0.5 model.backbone.init_cfg.checkpoint=FILE
# where FILE is a checkpoint of us3l_resnet18_1xb64-coslr-400e_own-images.py.
# Classes are those of the annotation file; with more than one, the run says
# which two options to set. All values are the project's own and untuned, for
# some hundred images and a small GPU or a CPU.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/default_runtime.py',
    '../../_base_/detection/ssl_transfer.py',
]

num_classes = 1
model = dict(
    type='us3l_mm.SubnetDetector',  # the neck's in_channels follow the width
    detector='MaskRCNN',
    data_preprocessor=_base_.ssl_preprocessor,
    backbone=dict(
        _delete_=True,
        type='us3l_mm.SlimmableResNet',
        depth=18,
        width=0.5,
        # All norms are trained, so they need no measured statistics.
        missing_statistics='reset',
        out_indices=(0, 1, 2, 3),
        **{
            key: value
            for key, value in _base_.ssl_backbone.items() if key != 'norm_cfg'
        },
        norm_cfg=dict(type='BN')),
    neck=dict(out_channels=64, norm_cfg=dict(type='BN')),
    rpn_head=dict(
        in_channels=64, feat_channels=64,
        anchor_generator=dict(scales=[4])),  # anchors from 16 pixels
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28),
        bbox_head=dict(
            in_channels=64, fc_out_channels=256, num_classes=num_classes),
        mask_roi_extractor=dict(out_channels=64, finest_scale=28),
        mask_head=dict(
            num_convs=2,
            in_channels=64,
            conv_out_channels=64,
            num_classes=num_classes,
            norm_cfg=dict(type='BN'))),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=1000, max_per_img=500),
        rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(
        rpn=dict(nms_pre=1000, max_per_img=500), rcnn=dict(max_per_img=200)))

data_root = 'data/own_coco'
image_size = (512, 512)
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type='us3l_mm.CocoFolder',
        data_root=data_root,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=16),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='Resize', scale=image_size, keep_ratio=True),
            dict(
                type='RandomFlip',
                prob=[0.25, 0.25],
                direction=['horizontal', 'vertical']),
            dict(type='PackDetInputs')
        ]))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='us3l_mm.CocoFolder',
        data_root=data_root,
        ann_file='annotations/instances_val.json',
        same_classes_as='annotations/instances_train.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=image_size, keep_ratio=True),
            dict(
                type='PackDetInputs',
                meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                           'scale_factor'))
        ]))
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric',
    ann_file=f'{data_root}/annotations/instances_val.json',
    metric=['bbox', 'segm'])
test_evaluator = val_evaluator

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=60, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=10))
# The curve is counted in iterations and ends where training ends.
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False)]
auto_scale_lr = dict(enable=False, base_batch_size=4)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20),
    checkpoint=dict(
        type='us3l_mm.AtomicCheckpointHook', interval=10, max_keep_ckpts=2),
    **_base_.ssl_hooks)
randomness = dict(seed=0)
