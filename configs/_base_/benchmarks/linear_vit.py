# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's schedule of linear classifiers on transformers (MoCo v3's).
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='SGD',
        lr=0.1,  # reference, for 4 x 256
        momentum=0.9,  # reference
        weight_decay=0.0))  # reference
# Counted in iterations, so that it ends where training ends.
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False)]
train_cfg = dict(by_epoch=True, max_epochs=90, val_interval=10)
auto_scale_lr = dict(enable=False, base_batch_size=1024)
