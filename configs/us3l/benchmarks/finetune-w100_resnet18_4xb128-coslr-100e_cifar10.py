# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# All layers of the network of one width learn labels, as an ordinary network.
# The paper fine-tunes on other data sets; the hyper-parameters are the
# project's own and untuned.
_base_ = './linear-w100_resnet18_4xb128-steplr-100e_cifar10.py'

model = dict(backbone=dict(frozen_stages=-1, norm_eval=False))

optim_wrapper = dict(
    optimizer=dict(
        lr=0.1,  # ours, for a batch of 4 x 128
        weight_decay=5e-4))  # ours
# ours; counted in iterations, so that it ends where training ends
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False)]
