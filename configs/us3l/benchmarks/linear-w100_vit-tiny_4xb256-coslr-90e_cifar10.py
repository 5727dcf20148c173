# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's linear evaluation of transformers: 4 GPUs x 256 images.
_base_ = [
    '../../_base_/benchmarks/linear_vit_tiny_cifar.py',
    '../../_base_/benchmarks/cifar10_vit.py',
    '../../_base_/benchmarks/linear_vit.py',
    '../../_base_/benchmarks/runtime.py',
]

val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='accuracy/top1'))
