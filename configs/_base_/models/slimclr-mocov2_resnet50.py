# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# SlimCLR on MoCo v2.
_base_ = './slimclr_resnet50.py'

model = dict(
    neck=dict(
        type='us3l_mm.SlimmableProjector',
        in_channels=2048,
        hid_channels=2048,  # reference
        out_channels=128,  # reference
        num_layers=2,  # reference
        slice_hidden=True,  # reference
        norm_cfg=None,  # reference
        with_last_bn=False,  # reference
        with_bias=True,  # reference
        with_last_bias=True,  # reference
        init_cfg=dict(type='Normal', layer='Linear', std=0.01)),  # reference
    head=dict(
        type='us3l_mm.MoCoV2Contrast',
        channels=128,
        queue_length=65536,  # reference
        temperature=0.2),  # reference
    # The share of the student that enters: the reference's m = 0.999.
    teacher=dict(momentum=0.001),
    key_norms='shuffled',  # reference
    sync_norms=False)  # reference: statistics of each process
