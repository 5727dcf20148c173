# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Dense + gated SSL on VICReg, with the stem for images of 96 pixels and more.
model = dict(
    type='us3l_mm.DenseGatedSSL',
    backbone=dict(
        type='us3l_mm.GatedResNet',
        depth=18,  # reference
        norm_cfg=dict(type='SwitchableBN'),  # reference: for each mode
        reduction=4,  # reference
        temperature=2 / 3,  # reference
        zero_init_residual=False),  # reference
    neck=dict(
        type='us3l_mm.SlimmableProjector',
        in_channels=512,
        hid_channels=2048,  # reference
        out_channels=2048,  # reference
        num_layers=3,  # reference
        with_last_bn=False,  # reference
        with_bias=True,  # reference
        with_last_bias=True),  # reference
    head=dict(
        type='us3l_mm.PairHead',
        loss=dict(
            type='us3l_mm.VICRegLoss',
            invariance=25.0,  # reference
            variance=25.0,  # reference
            covariance=1.0,  # reference
            gather=False)),  # reference: statistics of each process
    budget=dict(
        target=0.3,  # paper: 0.1, 0.2, 0.3, 0.4 or 0.5
        weight=5.0,  # reference
        expected=False,  # reference: of the masks of the step
        bound='sqrt',  # reference
        bound_weight=1.0,  # reference
        anneal=10.0),  # reference: 0.02 per epoch, 500 epochs
    modes=('gated', 'dense'),  # reference
    sync_norms=True)  # reference
