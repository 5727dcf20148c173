# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Mask R-CNN on a vision transformer of one width, sliced from a full
# checkpoint when it is loaded: --cfg-options model.backbone.width=0.25
# model.backbone.init_cfg.checkpoint=FILE, where FILE is a checkpoint of the
# pre-training: there are no statistics to measure. The pyramid and the
# optimizer are ViTDet's (arXiv 2203.16527). Unlike there, every layer attends
# to the whole image (no windows), and the schedule is the 1x of the other
# detectors.
_base_ = './mask-rcnn_r50_fpn_ms-1x_coco.py'

model = dict(
    type='us3l_mm.SubnetDetector',  # the neck's in_channels follow the width
    detector='MaskRCNN',
    backbone=dict(
        _delete_=True,
        type='us3l_mm.SlimmableViT',
        arch='small',
        slicing='input',  # as pre-trained; 'embed' narrows the features too
        img_size=224,  # of the pre-training; positions are interpolated
        patch_size=16,
        positions='sincos',
        out_type='featmap',
        drop_path_rate=0.1,  # ViTDet
        width=0.5,
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.')),
    neck=dict(
        _delete_=True, type='us3l_mm.SimpleFPN', out_channels=256, num_outs=5))

optim_wrapper = dict(
    optimizer=dict(
        _delete_=True,
        type='AdamW',
        # ours: 1e-4 for a batch of 64 (ViTDet), by the square root rule
        lr=5e-5,
        betas=(0.9, 0.999),
        weight_decay=0.1),  # ViTDet
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys=dict(
            cls_token=dict(decay_mult=0.0), pos_embed=dict(decay_mult=0.0))))
