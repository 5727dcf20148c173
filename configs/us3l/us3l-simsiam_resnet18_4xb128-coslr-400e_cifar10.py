# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# SimSiam as base method: targets are the student's own, so that sub-networks
# are distilled from the online network. The paper warns of collapse: look at
# spread_max in the log. Learning rate and weight decay are those of the
# reference's BYOL recipe; for SimSiam they are ours, untested.
_base_ = './us3l-byol_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(base_method='simsiam', distill_from='online')
