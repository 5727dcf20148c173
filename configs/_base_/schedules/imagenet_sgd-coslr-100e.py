# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's ImageNet schedule: 100 epochs, cosine without warm-up, mixed
# precision (float16 on a GPU, bfloat16 on a CPU). For single precision:
# --cfg-options optim_wrapper.type=us3l_mm.MultiPassOptimWrapper
_base_ = '../us3l_runtime.py'

optim_wrapper = dict(
    type='us3l_mm.MultiPassAmpOptimWrapper',
    optimizer=dict(
        type='SGD',
        lr=0.05,  # reference, for a batch of 480
        momentum=0.9,  # reference
        weight_decay=0.0))  # group regularisation decays instead
# ours: the curve is counted in iterations. It ends where training ends,
# whatever train_cfg says.
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False)]
train_cfg = dict(by_epoch=True, max_epochs=100)

default_hooks = dict(
    group_reg=dict(
        type='us3l_mm.GroupRegHook',
        lam=5e-5,  # reference: half of a weight decay of 1e-4
        alpha=0.05,  # paper
        warmup_epochs=50))  # reference
