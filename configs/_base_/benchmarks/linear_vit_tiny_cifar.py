# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# A linear classifier on the class token of the frozen network of one width.
model = dict(
    type='us3l_mm.SubnetClassifier',
    backbone=dict(
        type='us3l_mm.SlimmableViT',
        arch='tiny',
        img_size=224,
        patch_size=16,
        slice='input',
        positions='sincos',
        width=1.0,
        frozen_stages=12,
        # --cfg-options model.backbone.init_cfg.checkpoint=FILE, of the
        # pre-training: there are no statistics to measure
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.')),
    neck=None,
    # in_channels follow the width
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        init_cfg=dict(type='Normal', layer='Linear', std=0.01),  # reference
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5)))
