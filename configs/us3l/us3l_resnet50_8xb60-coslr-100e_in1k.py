# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's ImageNet recipe: BYOL, cosine losses, 100 epochs, mixed
# precision.
_base_ = [
    '../_base_/models/us3l-byol_resnet50_in1k.py',
    '../_base_/datasets/imagenet_two-views.py',
    '../_base_/schedules/imagenet_sgd-coslr-100e.py',
]

# 8 GPUs x 60 images = 480 (reference)
train_dataloader = dict(batch_size=60)
auto_scale_lr = dict(enable=False, base_batch_size=480)
default_hooks = dict(checkpoint=dict(interval=1))
