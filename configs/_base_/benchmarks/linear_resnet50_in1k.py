# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# A linear classifier on the frozen network of one width.
model = dict(
    type='us3l_mm.SubnetClassifier',
    backbone=dict(
        type='us3l_mm.SlimmableResNet',
        depth=50,
        width=1.0,
        frozen_stages=4,
        norm_eval=True,
        # --cfg-options model.backbone.init_cfg.checkpoint=FILE, as
        # tools/evaluate_widths.py --save-checkpoint FILE writes it
        init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.')),
    neck=dict(type='GlobalAveragePooling'),
    # in_channels follow the width
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5)))
