# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# What classifiers share: an ordinary MMPretrain run. One width has one set of
# shapes, several have a few, so the tuner pays.
_base_ = '../default_runtime.py'

# MMEngine's own; without a list of devices it runs on CPUs too.
model_wrapper_cfg = dict(
    _delete_=True,
    type='MMDistributedDataParallel',
    device_ids=None,
    broadcast_buffers=False)
env_cfg = dict(cudnn_benchmark=True)
