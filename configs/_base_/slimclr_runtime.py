# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# What every pre-training run by SlimCLR needs besides the default runtime.
_base_ = './us3l_runtime.py'

default_hooks = dict(
    sampler=dict(
        _delete_=True,
        type='us3l_mm.DynamicSamplerHook',
        widths=[1.0, 0.75, 0.5, 0.25],  # paper
        # reference: 2.5 for the full network, 1 for each of the others
        weights='full plus all',
        # paper: the full network trains alone in the first half.
        slow_start=0.5))

# There are few shapes, which cuDNN can time its algorithms for.
env_cfg = dict(cudnn_benchmark=True)
