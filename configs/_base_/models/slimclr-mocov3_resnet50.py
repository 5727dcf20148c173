# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# SlimCLR on MoCo v3.
_base_ = './slimclr_resnet50.py'

widths = [1.0, 0.75, 0.5, 0.25]  # paper
model = dict(
    neck=dict(
        type='us3l_mm.SlimmableProjector',
        in_channels=2048,
        hid_channels=4096,  # reference
        out_channels=256,  # reference
        num_layers=2,  # reference
        slice_hidden=True,  # reference
        norm_cfg=dict(type='us3l_mm.SwitchableBatchNorm1d', subnets=widths),
        with_last_bn=True,  # reference
        with_last_bn_affine=False,  # reference
        init_cfg=dict(type='Normal', layer='Linear', std=0.01)),  # reference
    head=dict(
        type='us3l_mm.MoCoV3Contrast',
        temperature=1.0,  # reference
        gather=True,  # reference
        predictor=dict(
            type='us3l_mm.Predictor',
            in_channels=256,
            hid_channels=4096,  # reference
            out_channels=256,
            num_layers=2,  # reference
            slice_hidden=True,  # reference
            norm_cfg=dict(
                type='us3l_mm.SwitchableBatchNorm1d', subnets=widths),
            with_last_bn=False)),  # reference
    distill=dict(temperature=1.0),  # reference
    # The share of the student that enters: the reference's m = 0.99, which
    # comes to 1 along half a cosine.
    teacher=dict(momentum=0.01, final_momentum=0.0),
    sync_norms=True)  # reference
