# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# US3L on MoCo v3 and a vision transformer. Projector (last norm without affine
# parameters) 2048-2048-256, predictor and distillation head 256-2048-256, both
# losses MoCo v3's at temperature 0.2: the defaults of base_method, in
# us3l_mm/models/selfsup/base_methods.py.
model = dict(
    type='us3l_mm.US3LAlgorithm',
    base_method='moco_v3',  # paper, for transformers
    backbone=dict(
        type='us3l_mm.SlimmableViT',
        arch='tiny',
        img_size=224,
        patch_size=16,  # reference
        slice='input',  # reference: 'embed' narrows the residual stream too
        positions='sincos',  # reference: fixed
        frozen_patch_embed=True,  # reference, after MoCo v3
        init_style='mocov3',  # of MoCo v3
        width_range=(0.25, 1.0)),  # paper
    # The share that enters, m = 0.99 in the paper; it falls to 0, along half
    # a cosine.
    teacher_momentum=0.01,
    update_mode='sequential',  # reference: an optimizer step per pass
    sync_norms=True)  # ours: those of projector and predictors (MoCo v3)
