# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's schedule for transformers: AdamW, 300 epochs, 40 of warm-up,
# then half a cosine.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='AdamW',
        lr=1.5e-4,  # reference, for a batch of 256
        # GroupRegHook decays instead, by lam = 0.1 / 2 (reference).
        weight_decay=0.0))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-4,
        end=40,  # reference
        by_epoch=True,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        begin=40,
        by_epoch=True,
        convert_to_iter_based=True)
]
train_cfg = dict(by_epoch=True, max_epochs=300)

# In this order also on the command line: custom_hooks.1.num_stages=1
custom_hooks = [
    dict(type='us3l_mm.PreflightHook'),
    dict(
        type='us3l_mm.DynamicSamplerHook',
        num_samples=3,  # reference: the full, a random and the lowest width
        num_stages=4,  # paper: dynamic sampling
        grid=1 / 32),  # ours: few shapes; None is the reference's
    dict(
        type='us3l_mm.GroupRegHook',
        lam=0.05,  # reference: half of a weight decay of 0.1
        alpha=0.05,  # paper
        group_dims={2: 1},  # reference: input features of linear layers
        # ours: as AdamW applies it. In the loss, Adam would divide this
        # gradient by its own size.
        decoupled=True),
]
