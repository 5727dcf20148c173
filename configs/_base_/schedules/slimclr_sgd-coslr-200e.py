# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's schedule for MoCo v2: SGD, 200 epochs, 10 of warm-up, then
# half a cosine, mixed precision (float16 on a GPU, bfloat16 on a CPU). For
# single precision:
# --cfg-options optim_wrapper.type=us3l_mm.MultiPassOptimWrapper
_base_ = '../slimclr_runtime.py'

optim_wrapper = dict(
    type='us3l_mm.MultiPassAmpOptimWrapper',  # reference
    optimizer=dict(
        type='SGD',
        lr=0.2,  # reference, for a batch of 1024
        momentum=0.9,  # reference
        weight_decay=1e-4))  # reference: of all parameters
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-9,  # 0 would stay 0 here
        end=10,  # reference
        by_epoch=True,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        begin=10,
        by_epoch=True,
        convert_to_iter_based=True)
]
train_cfg = dict(by_epoch=True, max_epochs=200)
