# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# MMDetection's Mask R-CNN with the settings of ssl_transfer.py.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', './ssl_transfer.py']

model = dict(
    data_preprocessor=_base_.ssl_preprocessor,
    backbone=_base_.ssl_backbone,
    neck=dict(norm_cfg=_base_.ssl_norm_cfg),
    roi_head=dict(
        bbox_head=_base_.ssl_bbox_head,
        mask_head=dict(norm_cfg=_base_.ssl_norm_cfg)))

train_dataloader = dict(
    dataset=dict(pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        _base_.ssl_resize,
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackDetInputs'),
    ]))
