# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's recipe for MoCo v2, 200 epochs.
_base_ = [
    '../_base_/models/slimclr-mocov2_resnet50.py',
    '../_base_/datasets/imagenet_two-views.py',
    '../_base_/schedules/slimclr_sgd-coslr-200e.py',
]

# 4 GPUs x 256 images = 1024 (reference). The queue takes whole batches.
train_dataloader = dict(batch_size=256, drop_last=True)
auto_scale_lr = dict(enable=False, base_batch_size=1024)
