# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's schedule: LARS, 500 epochs, 10 of warm-up, then half a cosine,
# mixed precision (float16 on a GPU, bfloat16 on a CPU). For single precision:
# --cfg-options optim_wrapper.type=us3l_mm.MultiPassOptimWrapper
_base_ = '../gated_runtime.py'

optim_wrapper = dict(
    type='us3l_mm.MultiPassAmpOptimWrapper',  # reference
    optimizer=dict(
        type='us3l_mm.LARS',
        lr=0.6,  # reference, for a batch of 512
        momentum=0.9,  # reference
        weight_decay=1e-4,  # reference
        eta=0.02,  # reference
        clip=True,  # reference: at most the learning rate
        exclude_flat=True),  # reference: norms and biases
    # Gates have no weight decay (reference).
    paramwise_cfg=dict(custom_keys={'.gate': dict(decay_mult=0.0)}))
# A step per epoch (reference).
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.005,  # reference: from 0.003
        end=10,  # reference
        by_epoch=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,  # reference
        begin=10,
        by_epoch=True)
]
train_cfg = dict(by_epoch=True, max_epochs=500)
