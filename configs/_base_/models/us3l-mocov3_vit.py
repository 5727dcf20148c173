# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# US3L on MoCo v3 and a vision transformer.
model = dict(
    type='us3l_mm.US3LAlgorithm',
    backbone=dict(
        type='us3l_mm.SlimmableViT',
        arch='tiny',
        img_size=224,
        patch_size=16,  # reference
        slicing='input',  # reference: 'embed' narrows the residual stream too
        positions='sincos',  # reference: fixed
        frozen_patch_embed=True,  # reference, after MoCo v3
        init_style='mocov3',  # of MoCo v3
        width_range=(0.25, 1.0)),  # paper
    neck=dict(
        type='us3l_mm.SlimmableProjector',
        in_channels=192,
        hid_channels=2048,  # reference
        out_channels=256,  # reference
        num_layers=3,  # reference
        with_last_bn=True,  # MoCo v3
        with_last_bn_affine=False),  # MoCo v3
    head=dict(
        type='us3l_mm.PredictionHead',
        weight=1.0,  # reference: the two directions are added, as in MoCo v3
        predictor=dict(
            type='us3l_mm.Predictor',
            in_channels=256,
            hid_channels=2048,  # reference
            out_channels=256,
            num_layers=2,  # MoCo v3
            with_last_bn=True,  # MoCo v3
            with_last_bn_affine=False),  # MoCo v3
        loss=dict(type='us3l_mm.MoCoV3Loss', temperature=0.2)),  # reference
    distill_head=dict(
        type='us3l_mm.PredictionHead',
        weight=1.0,  # reference
        loss=dict(type='us3l_mm.MoCoV3Loss', temperature=0.2)),  # reference
    base_from='teacher',  # paper, guideline 1
    distill_from='teacher',  # paper, guideline 2
    # paper, guideline 3: distillation has a predictor of its own. reference:
    # it starts as a copy of that of the base pass.
    share_predictor='at the start',
    # The share of the student that enters: the paper's m = 0.99. It falls to
    # 0 along half a cosine (MoCo v3).
    teacher=dict(momentum=0.01, final_momentum=0.0),
    update_mode='sequential',  # reference: an optimizer step per pass
    sync_norms=True)  # reference: those of projector and predictors
