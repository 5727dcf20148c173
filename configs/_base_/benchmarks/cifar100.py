# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# CIFAR-100, in all else like CIFAR-10.
_base_ = './cifar10.py'

data_preprocessor = dict(
    num_classes=100,
    mean=[129.304, 124.070, 112.434],
    std=[68.170, 65.392, 70.418])

train_dataloader = dict(
    dataset=dict(type='CIFAR100', data_root='data/cifar100'))
val_dataloader = dict(dataset=dict(type='CIFAR100', data_root='data/cifar100'))
test_dataloader = dict(
    dataset=dict(type='CIFAR100', data_root='data/cifar100'))
