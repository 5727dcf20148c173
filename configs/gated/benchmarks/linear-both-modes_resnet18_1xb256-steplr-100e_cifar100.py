# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# As on CIFAR-10, with the classes of CIFAR-100.
_base_ = './linear-both-modes_resnet18_1xb256-steplr-100e_cifar10.py'

model = dict(head=dict(num_classes=100))
data_preprocessor = dict(num_classes=100)
train_dataloader = dict(
    dataset=dict(type='CIFAR100', data_root='data/cifar100'))
val_dataloader = dict(dataset=dict(type='CIFAR100', data_root='data/cifar100'))
test_dataloader = dict(
    dataset=dict(type='CIFAR100', data_root='data/cifar100'))
