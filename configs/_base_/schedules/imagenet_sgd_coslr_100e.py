# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's ImageNet schedule: 100 epochs, cosine without warm-up, mixed
# precision. Without a GPU: --cfg-options optim_wrapper.type=OptimWrapper
optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(
        type='SGD',
        lr=0.05,  # reference, for a batch of 480
        momentum=0.9,  # reference
        # GroupRegHook decays instead, by lam = 1e-4 / 2 (reference).
        weight_decay=0.0))
# Counted in iterations, so that it ends where training ends, whatever
# train_cfg says.
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False)]
train_cfg = dict(by_epoch=True, max_epochs=100)

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
        lam=5e-5,  # reference: half of a weight decay of 1e-4
        alpha=0.05,  # paper
        warmup_epochs=50),  # reference
]
