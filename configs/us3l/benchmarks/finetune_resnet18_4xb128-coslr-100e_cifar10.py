# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Fine-tuning of all layers of the network of one width on labels, like any
# other network. The paper fine-tunes on other data sets; the hyper-parameters
# are the project's own and untuned. Another width: --cfg-options
# model.backbone.width=0.5
_base_ = './linear_resnet18_4xb128-steplr-100e_cifar10.py'

model = dict(backbone=dict(frozen_stages=-1, norm_eval=False))

optim_wrapper = dict(
    optimizer=dict(
        lr=0.1,  # ours, for a batch of 4 x 128
        weight_decay=5e-4))  # ours
# ours; the curve is counted in iterations and ends where training ends.
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False)]
