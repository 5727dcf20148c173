# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's schedule of linear classifiers on CIFAR.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='SGD',
        lr=30.0,  # reference, for a batch of 4 x 128
        momentum=0.9,  # reference
        weight_decay=0.0))  # reference
param_scheduler = [
    dict(type='MultiStepLR', milestones=[60, 80], gamma=0.1, by_epoch=True)
]
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=10)
auto_scale_lr = dict(enable=False, base_batch_size=512)
