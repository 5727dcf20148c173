# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# What every pre-training run by US3L needs besides the default runtime.
_base_ = './default_runtime.py'

default_hooks = dict(
    preflight=dict(type='us3l_mm.PreflightHook'),
    sampler=dict(
        type='us3l_mm.DynamicSamplerHook',
        num_samples=3,  # reference: the full, a random and the lowest width
        num_stages=4,  # paper: dynamic sampling
        grid=1 / 32),  # ours: few shapes; None is the reference's
    collapse=dict(type='us3l_mm.CollapseMonitorHook'),
    # Does nothing without --cfg-options compile=True.
    compile=dict(type='us3l_mm.CompileHook'))

# MMEngine's own wrapper would train the full width alone.
model_wrapper_cfg = dict(
    _delete_=True, type='us3l_mm.MultiPassDistributedDataParallel')

# ours: random widths bring new convolution shapes in nearly every iteration,
# and cuDNN would time its algorithms for each of them.
env_cfg = dict(cudnn_benchmark=False)
