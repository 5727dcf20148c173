# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's linear evaluation on CIFAR-10: 4 GPUs x 128 images.
_base_ = [
    '../../_base_/benchmarks/linear_resnet18_cifar.py',
    '../../_base_/benchmarks/cifar10.py',
    '../../_base_/benchmarks/linear_cifar.py',
    '../../_base_/benchmarks/runtime.py',
]

val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='accuracy/top1'))
