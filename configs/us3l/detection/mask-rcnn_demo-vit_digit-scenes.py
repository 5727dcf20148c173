# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The demo's Mask R-CNN on a width of the vision transformer that `make demo
# DEMO=vit` pre-trains, with a simple feature pyramid. --cfg-options
# model.backbone.init_cfg.checkpoint=FILE names the checkpoint,
# model.backbone.width=0.25 another width.
_base_ = './mask-rcnn_demo_digit-scenes.py'

strides = [1, 2, 4, 8]  # of a pyramid around patches of 4 pixels
model = dict(
    type='us3l_mm.SubnetDetector',  # the neck's in_channels follow the width
    detector='MaskRCNN',
    backbone=dict(
        _delete_=True,
        # The network of us3l_vit_demo_digits.py
        type='us3l_mm.SlimmableViT',
        arch=dict(
            embed_dims=64, num_layers=3, num_heads=4,
            feedforward_channels=256),
        img_size=32,  # of the pre-training; positions are interpolated
        patch_size=4,
        slicing='embed',
        positions='sincos',
        out_type='featmap',
        width=0.5,
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.')),
    neck=dict(
        _delete_=True, type='us3l_mm.SimpleFPN', out_channels=48, num_outs=4),
    rpn_head=dict(anchor_generator=dict(strides=strides)),
    roi_head=dict(
        bbox_roi_extractor=dict(featmap_strides=strides, finest_scale=7),
        mask_roi_extractor=dict(featmap_strides=strides, finest_scale=7)))
