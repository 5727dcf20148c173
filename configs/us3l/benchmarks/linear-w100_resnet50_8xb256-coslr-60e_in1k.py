# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's linear evaluation on ImageNet: 8 GPUs x 256 images.
_base_ = [
    '../../_base_/benchmarks/linear_resnet50_in1k.py',
    '../../_base_/benchmarks/imagenet.py',
    '../../_base_/benchmarks/linear_imagenet.py',
    '../../_base_/benchmarks/runtime.py',
]

val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='accuracy/top1'))
