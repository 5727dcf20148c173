# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# US3L on SimCLR with a momentum teacher, for 32-pixel images. Projector
# 2048-2048-256, no predictor in the base pass, distillation head 256-2048-256:
# the defaults of base_method, in us3l_mm/models/selfsup/base_methods.py.
model = dict(
    type='us3l_mm.US3LAlgorithm',
    base_method='simclr_momentum',  # reference: its CIFAR default
    backbone=dict(
        type='us3l_mm.SlimmableResNet_CIFAR',
        depth=18,
        width_range=(0.25, 1.0),  # paper
        # Batch statistics per width while training, and no running ones;
        # tools/evaluate_widths.py measures them afterwards.
        norm_cfg=dict(type='BN'),
        zero_init_residual=False),  # as in MMPretrain's BYOL
    base_loss=dict(
        type='us3l_mm.InfoNCELoss',
        temperature=0.5,  # reference
        gather=True),  # ours: 4 x 128 images train what 1 x 512 would
    distill_loss='cosine',  # reference
    distill_from='teacher',  # paper, guideline 2
    share_head=False,  # paper, guideline 3
    teacher_momentum=0.01,  # the share that enters: the paper's m = 0.99
    update_mode='sequential',  # reference: an optimizer step per pass
    sync_norms=False)  # reference: statistics of each process
