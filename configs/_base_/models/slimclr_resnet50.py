# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# What the three methods of SlimCLR have in common, for images of 224 pixels.
model = dict(
    type='us3l_mm.SlimCLR',
    backbone=dict(
        type='us3l_mm.SlimmableResNet',
        depth=50,
        norm_cfg=dict(type='SwitchableBN', subnets=[1.0, 0.75, 0.5,
                                                    0.25]),  # paper
        zero_init_residual=True),  # reference: the norms of all widths
    # Matches the similarities of the online full network.
    distill=dict(
        type='us3l_mm.SimilarityDistillation',
        kind='kl',  # reference, without the entropy of the teacher
        temperature=5.0),  # reference
    distill_weight=0.5,  # reference
    distill_from='full',  # reference
    update_mode='accumulate')  # reference: an optimizer step per batch
