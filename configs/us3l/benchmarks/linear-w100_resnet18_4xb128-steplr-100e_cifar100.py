# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's linear evaluation on CIFAR-100: 4 GPUs x 128 images.
_base_ = [
    '../../_base_/benchmarks/linear_resnet18_cifar.py',
    '../../_base_/benchmarks/cifar100.py',
    '../../_base_/benchmarks/linear_cifar.py',
    '../../_base_/benchmarks/runtime.py',
]

model = dict(head=dict(num_classes=100))
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=1, save_best='accuracy/top1'))
