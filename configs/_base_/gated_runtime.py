# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# What every pre-training run of dense + gated SSL needs besides the default
# runtime. A step has one pass, in which each view has its mode (model.modes).
_base_ = './us3l_runtime.py'

default_hooks = dict(
    sampler=dict(
        _delete_=True, type='us3l_mm.DynamicSamplerHook', widths=['dense']))

# There are few shapes, which cuDNN can time its algorithms for.
env_cfg = dict(cudnn_benchmark=True)
