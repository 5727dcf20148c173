# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's schedule for SimCLR: LARS, 100 epochs, 10 of warm-up, then
# half a cosine, mixed precision (float16 on a GPU, bfloat16 on a CPU).
_base_ = './slimclr_sgd-coslr-200e.py'

# reference: neither decay nor adaptation of the rate for norms and biases.
# The longest key that is part of a parameter's name counts; `downsample.1` is
# the norm of a shortcut.
one_dimensional = dict(decay_mult=0.0, lars_exclude=True)
optim_wrapper = dict(
    optimizer=dict(
        _delete_=True,
        type='LARS',
        lr=2.4,  # reference, for a batch of 1024
        momentum=0.9,  # reference
        weight_decay=1e-6,  # reference
        eta=1e-3),  # reference
    paramwise_cfg=dict(
        custom_keys={
            'bn': one_dimensional,
            'bias': one_dimensional,
            'downsample.1': one_dimensional
        }))
train_cfg = dict(max_epochs=100)
