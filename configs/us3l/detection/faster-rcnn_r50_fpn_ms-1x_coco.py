# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Faster R-CNN on a slice, by MMDetection's own classes: the file that
# tools/slice_checkpoint.py CKPT FILE --width 1.0 --format mmdet writes. With
# another width that command prints what to set; for 0.5 that is
# --cfg-options model.backbone.base_channels=32 model.backbone.stem_channels=32
# model.neck.in_channels=[128,256,512,1024]
_base_ = [
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    '../../_base_/detection/ssl_transfer.py',
]

model = dict(
    data_preprocessor=_base_.ssl_preprocessor,
    backbone=_base_.ssl_backbone,
    neck=dict(norm_cfg=_base_.ssl_norm_cfg),
    roi_head=dict(bbox_head=_base_.ssl_bbox_head))

train_dataloader = dict(
    dataset=dict(pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        _base_.ssl_resize,
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackDetInputs'),
    ]))
default_hooks = _base_.ssl_hooks
