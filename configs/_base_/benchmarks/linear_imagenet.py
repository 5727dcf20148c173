# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's schedule of linear classifiers on ImageNet.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='LARS',
        lr=0.8,  # reference, for a batch of 8 x 256
        momentum=0.9,  # ours
        weight_decay=0.0))  # ours, as on CIFAR
# Counted in iterations, so that it ends where training ends.
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False)]
train_cfg = dict(by_epoch=True, max_epochs=60, val_interval=5)
auto_scale_lr = dict(enable=False, base_batch_size=2048)
