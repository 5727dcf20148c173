# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's schedule for transformers: AdamW, 300 epochs, 40 of warm-up,
# then half a cosine, mixed precision (float16 on a GPU, bfloat16 on a CPU). For
# single precision:
# --cfg-options optim_wrapper.type=us3l_mm.MultiPassOptimWrapper
_base_ = '../us3l_runtime.py'

optim_wrapper = dict(
    type='us3l_mm.MultiPassAmpOptimWrapper',  # reference
    optimizer=dict(
        type='AdamW',
        lr=1.5e-4,  # reference, for a batch of 256
        weight_decay=0.1))  # reference
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-9,  # reference: from 0, which would stay 0 here
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

default_hooks = dict(
    group_reg=dict(
        type='us3l_mm.GroupRegHook',
        # reference: plain weight decay. In its place: lam=0.05, half of a
        # weight decay of 0.1, and optim_wrapper.optimizer.weight_decay=0.
        lam=0.0,
        alpha=0.05,  # paper
        warmup_epochs=100,  # reference
        group_dims={2: 1},  # reference: input features of linear layers
        # ours: as AdamW applies it. In the loss, Adam would divide this
        # gradient by its own size.
        decoupled=True))
