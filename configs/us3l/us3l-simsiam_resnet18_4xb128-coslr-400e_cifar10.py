# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# US3L on SimSiam: targets are the student's own output, and sub-networks are
# distilled from the online full network. The paper warns that this collapses:
# spread_max in the log shows it. Learning rate and weight decay are those of
# BYOL (reference).
_base_ = './us3l-simsiam-momentum_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(base_from='online', distill_from='online', teacher=None)

default_hooks = dict(sampler=dict(num_stages=1))  # reference
