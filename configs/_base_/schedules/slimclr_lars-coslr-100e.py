# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's schedule for SimCLR: LARS, 100 epochs, 10 of warm-up, then
# half a cosine, mixed precision (float16 on a GPU, bfloat16 on a CPU).
_base_ = './slimclr_sgd-coslr-200e.py'

optim_wrapper = dict(
    optimizer=dict(
        _delete_=True,
        type='us3l_mm.LARS',
        lr=2.4,  # reference, for a batch of 1024
        momentum=0.9,  # reference
        weight_decay=1e-6,  # reference
        eta=1e-3,  # reference
        exclude_flat=True))  # reference: norms and biases
train_cfg = dict(max_epochs=100)
