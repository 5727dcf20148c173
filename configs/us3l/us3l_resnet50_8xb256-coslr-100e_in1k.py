# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The ImageNet recipe at a batch of 2048. The learning rate follows the linear
# rule from the reference's batch of 480, with a short warm-up; this scaling is
# *ours* and has not been run on ImageNet.
_base_ = './us3l_resnet50_8xb60-coslr-100e_in1k.py'

# 8 GPUs x 256 images = 2048
train_dataloader = dict(batch_size=256)
auto_scale_lr = dict(enable=False, base_batch_size=2048)

optim_wrapper = dict(optimizer=dict(lr=0.2133))  # 0.05 * 2048 / 480
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.01,
        end=5,
        by_epoch=True,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        begin=5,
        by_epoch=True,
        convert_to_iter_based=True),
]
