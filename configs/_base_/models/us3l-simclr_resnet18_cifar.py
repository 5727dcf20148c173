# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# US3L on SimCLR with a momentum teacher, for images of 32 pixels.
model = dict(
    type='us3l_mm.US3LAlgorithm',
    backbone=dict(
        type='us3l_mm.SlimmableResNet_CIFAR',
        depth=18,
        width_range=(0.25, 1.0),  # paper
        # Batch statistics in training. Running ones are not tracked:
        # tools/evaluate_widths.py measures them afterwards.
        norm_cfg=dict(type='BN'),
        # reference: PyTorch's own. MMPretrain's, Kaiming by fan_out, has 2.45
        # times the weights.
        init_cfg=[
            dict(
                type='Kaiming',
                layer='Conv2d',
                a=5**0.5,
                mode='fan_in',
                nonlinearity='leaky_relu',
                distribution='uniform'),
            dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm'])
        ],
        zero_init_residual=False),  # reference
    neck=dict(
        type='us3l_mm.SlimmableProjector',
        in_channels=512,
        hid_channels=2048,  # reference
        out_channels=256,  # reference
        num_layers=3,  # reference
        with_last_bn=False,  # reference
        with_bias=True,  # reference
        with_last_bias=True),  # reference
    # SimCLR has no predictor.
    head=dict(
        type='us3l_mm.PredictionHead',
        loss=dict(
            type='us3l_mm.InfoNCELoss',
            temperature=0.5,  # reference
            gather=True)),  # ours: 4 x 128 images train what 1 x 512 would
    distill_head=dict(
        type='us3l_mm.PredictionHead',
        predictor=dict(
            type='us3l_mm.Predictor',
            in_channels=256,
            hid_channels=2048,  # reference
            out_channels=256,
            num_layers=2,  # reference
            with_last_bn=False,  # reference
            with_last_bias=True),  # reference
        loss=dict(type='CosineSimilarityLoss')),  # reference
    base_from='teacher',  # paper, guideline 1
    distill_from='teacher',  # paper, guideline 2
    share_predictor=False,  # paper, guideline 3
    # The share of the student that enters: the paper's m = 0.99.
    teacher=dict(momentum=0.01),
    update_mode='sequential',  # reference: an optimizer step per pass
    sync_norms=False)  # reference: statistics of each process
