# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# US3L on BYOL, for images of 224 pixels.
model = dict(
    type='us3l_mm.US3LAlgorithm',
    backbone=dict(
        type='us3l_mm.SlimmableResNet',
        depth=50,
        width_range=(0.25, 1.0),  # paper
        # Batch statistics in training. Running ones are not tracked:
        # tools/evaluate_widths.py measures them afterwards.
        norm_cfg=dict(type='BN'),
        zero_init_residual=False),  # reference
    neck=dict(
        type='us3l_mm.SlimmableProjector',
        in_channels=2048,
        hid_channels=2048,  # reference
        out_channels=2048,  # reference
        num_layers=3,  # reference
        with_last_bn=False,  # reference
        with_bias=(True, False),  # reference
        with_last_bias=True),  # reference
    head=dict(
        type='us3l_mm.PredictionHead',
        predictor=dict(
            type='us3l_mm.Predictor',
            in_channels=2048,
            hid_channels=2048,  # reference
            out_channels=2048,
            num_layers=2,  # reference
            with_last_bn=False,  # reference
            with_last_bias=True),  # reference
        loss=dict(type='CosineSimilarityLoss')),  # reference
    # The same layers as in the base pass, with weights of their own.
    distill_head=dict(
        type='us3l_mm.PredictionHead',
        predictor=dict(
            type='us3l_mm.Predictor',
            in_channels=2048,
            hid_channels=2048,  # reference
            out_channels=2048,
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
