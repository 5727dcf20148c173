# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# What a detector with self-supervised weights needs, and the sources:
#   MoCo       arXiv 1911.05722, section 4.2: its COCO protocol
#   MMPretrain configs/byol/benchmarks/mask-rcnn_r50_fpn_ms-1x_coco.py
#   MMDetection configs/selfsup_pretrain/mask-rcnn_r50-mocov2-pre_fpn_1x_coco.py
# The schedule is MMDetection's 1x, as in MMPretrain: 12 epochs of SGD,
# learning rate 0.02 for a batch of 8 x 2. The configs in
# configs/us3l/detection/ assign these values.
custom_imports = dict(imports=['us3l_mm'], allow_failed_imports=False)

# MoCo: batch norm is trained and synchronised over all processes, as features
# of self-supervised networks have other magnitudes, and so it is in the new
# layers (pyramid, heads). In a single process MMEngine makes it a plain batch
# norm.
ssl_norm_cfg = dict(type='SyncBN', requires_grad=True)

# Mean and standard deviation of pre-training, in RGB order, as in
# configs/_base_/datasets/imagenet_two-views.py; files are read as BGR.
ssl_preprocessor = dict(
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True)

ssl_backbone = dict(
    norm_cfg=ssl_norm_cfg,
    norm_eval=False,  # MoCo, MMPretrain, MMDetection
    frozen_stages=-1,  # MoCo, MMPretrain: all layers are trained
    style='pytorch',  # stride in the 3x3 convolution, as in pre-training
    # --cfg-options model.backbone.init_cfg.checkpoint=FILE
    init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.'))

# MMPretrain: four convolutions with norms before the linear layer
ssl_bbox_head = dict(type='Shared4Conv1FCBBoxHead', norm_cfg=ssl_norm_cfg)

# MoCo: a shorter side of 640 to 800 pixels in training, 800 in tests; the
# steps in between are MMPretrain's.
ssl_resize = dict(
    type='RandomChoiceResize',
    scales=[(1333, 640), (1333, 672), (1333, 704), (1333, 736), (1333, 768),
            (1333, 800)],
    keep_ratio=True)

ssl_hooks = dict(
    # MMEngine only logs weights that do not fit, and trains from scratch.
    check_pretrained=dict(type='us3l_mm.CheckPretrainedHook'),
    # MMDetection drops the annotations of classes that it does not know.
    check_annotations=dict(type='us3l_mm.CheckAnnotationsHook'))
