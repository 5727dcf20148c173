# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# SlimCLR on SimCLR.
_base_ = './slimclr_resnet50.py'

widths = [1.0, 0.75, 0.5, 0.25]  # paper
model = dict(
    neck=dict(
        type='us3l_mm.SlimmableProjector',
        in_channels=2048,
        hid_channels=2048,  # reference
        out_channels=128,  # reference
        num_layers=2,  # reference
        slice_hidden=True,  # reference
        norm_cfg=dict(type='us3l_mm.SwitchableBatchNorm1d', subnets=widths),
        with_bias=True,  # reference
        with_last_bn=True,  # reference
        with_last_bn_affine=True,  # reference
        init_cfg=dict(type='Normal', layer='Linear', std=0.01)),  # reference
    head=dict(
        type='us3l_mm.SimCLRContrast',
        temperature=0.1,  # reference
        gather=True),  # reference
    sync_norms=True)  # reference
