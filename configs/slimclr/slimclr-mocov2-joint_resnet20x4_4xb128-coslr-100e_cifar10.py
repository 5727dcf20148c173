# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The paper's small experiment on CIFAR-10: MoCo trains two widths of a
# ResNet-20x4 together, without any of the three techniques. The reference
# names network, widths, weights, epochs, and a step per width; the rest is
# *ours*, that of the recipe for ResNet-18, and has not been run.
_base_ = './slimclr-mocov2_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(
    backbone=dict(
        depth=20,
        base_channels=64,
        stem_channels=64,
        norm_cfg=dict(subnets=[1.0, 0.5])),
    neck=dict(in_channels=256, hid_channels=256),
    distill=None,
    update_mode='sequential')
train_cfg = dict(max_epochs=100)

default_hooks = dict(
    sampler=dict(widths=[1.0, 0.5], weights='equal', slow_start=0.0),
    knn=dict(widths=(1.0, 0.5)))
