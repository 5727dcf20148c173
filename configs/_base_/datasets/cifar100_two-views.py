# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# CIFAR-100, otherwise as CIFAR-10. The reference normalises by the mean and
# the standard deviation of CIFAR-10.
_base_ = './cifar10_two-views.py'

train_dataloader = dict(
    dataset=dict(type='CIFAR100', data_root='data/cifar100'))
knn_bank_dataloader = dict(
    dataset=dict(type='CIFAR100', data_root='data/cifar100'))
knn_query_dataloader = dict(
    dataset=dict(type='CIFAR100', data_root='data/cifar100'))
