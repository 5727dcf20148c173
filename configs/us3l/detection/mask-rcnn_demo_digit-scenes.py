# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# What `make demo-detection` trains: Mask R-CNN on a slice of the demo's
# network, on a few scenes of handwritten digits, which are rendered when they
# are first used. All values are the project's own, tuned for minutes on two
# cores. For other widths tools/demo_detection.py sets the channels of the
# slice.
_base_ = ['mmdet::_base_/default_runtime.py']

custom_imports = dict(imports=['us3l_mm'], allow_failed_imports=False)

norm_cfg = dict(type='BN', requires_grad=True)
box_coder = dict(
    type='DeltaXYWHBBoxCoder',
    target_means=[0.0] * 4,
    target_stds=[0.1, 0.1, 0.2, 0.2])

model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[127.5] * 3,  # of the pre-training
        std=[63.75] * 3,
        pad_mask=True,
        pad_size_divisor=16),
    # The network of us3l_resnet18_demo_digits.py, as MMDetection's own class
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=32,
        stem_channels=32,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        frozen_stages=-1,
        norm_cfg=norm_cfg,
        norm_eval=False),
    neck=dict(
        type='FPN',
        in_channels=[32, 64, 128],
        out_channels=48,
        norm_cfg=norm_cfg,
        num_outs=3),
    rpn_head=dict(
        type='RPNHead',
        in_channels=48,
        feat_channels=48,
        # Digits are 7 to 28 pixels high, and narrower than high.
        anchor_generator=dict(
            type='AnchorGenerator',
            scales=[4],
            ratios=[1.0, 2.0],
            strides=[4, 8, 16]),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder',
            target_means=[0.0] * 4,
            target_stds=[1.0] * 4),
        loss_cls=dict(
            type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=1),
            out_channels=48,
            finest_scale=28,  # nearly all digits are on the finest map
            featmap_strides=[4, 8, 16]),
        bbox_head=dict(
            type='Shared2FCBBoxHead',
            in_channels=48,
            fc_out_channels=128,
            roi_feat_size=7,
            num_classes=10,
            bbox_coder=box_coder,
            reg_class_agnostic=True,
            loss_cls=dict(
                type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
        mask_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=1),
            out_channels=48,
            finest_scale=28,
            featmap_strides=[4, 8, 16]),
        mask_head=dict(
            type='FCNMaskHead',
            num_convs=2,
            in_channels=48,
            conv_out_channels=32,
            num_classes=10,
            class_agnostic=True,
            norm_cfg=norm_cfg,
            loss_mask=dict(
                type='CrossEntropyLoss', use_mask=True, loss_weight=1.0))),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.6,
                neg_iou_thr=0.3,
                min_pos_iou=0.3),
            sampler=dict(
                type='RandomSampler',
                num=64,
                pos_fraction=0.5,
                add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1),
        rpn_proposal=dict(
            nms_pre=200,
            max_per_img=64,
            nms=dict(type='nms', iou_threshold=0.7),
            min_bbox_size=0),
        rcnn=dict(
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.5),
            sampler=dict(type='RandomSampler', num=48, pos_fraction=0.33),
            mask_size=28,
            pos_weight=-1)),
    test_cfg=dict(
        rpn=dict(
            nms_pre=200,
            max_per_img=64,
            nms=dict(type='nms', iou_threshold=0.7),
            min_bbox_size=0),
        rcnn=dict(
            score_thr=0.05,
            nms=dict(type='nms', iou_threshold=0.5),
            max_per_img=30,
            mask_thr_binary=0.5)))

scenes = dict(num_train=24, num_val=200)
data_root = 'data/digit_scenes'
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(
        type='PackDetInputs',
        # The metric takes the annotations from the data set (`instances`), so
        # scenes need not exist before the data set has rendered them.
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                   'scale_factor', 'instances'))
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,  # images are too small for worker processes to pay
    sampler=dict(type='InfiniteSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type='us3l_mm.DigitScenes',
        split='train',
        data_root=data_root,
        scenes=scenes,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='PackDetInputs')
        ]))
val_dataloader = dict(
    batch_size=10,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='us3l_mm.DigitScenes',
        split='val',
        data_root=data_root,
        scenes=scenes,
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', metric=['bbox', 'segm'])
test_evaluator = val_evaluator

train_cfg = dict(type='IterBasedTrainLoop', max_iters=200, val_interval=1000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=10))
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False)]
auto_scale_lr = dict(enable=False, base_batch_size=8)

log_processor = dict(by_epoch=False)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1000),
    check_pretrained=dict(type='us3l_mm.CheckPretrainedHook'),
    check_annotations=dict(type='us3l_mm.CheckAnnotationsHook'))
randomness = dict(seed=0)
