# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# ViT-small on ImageNet-1k, with the batch size and schedule of MoCo v3. The
# learning rate follows the linear rule from the reference's CIFAR run; this
# recipe is *ours* and has not been run.
_base_ = [
    '../_base_/models/us3l-mocov3_vit.py',
    '../_base_/datasets/imagenet_two-views_byol.py',
    '../_base_/schedules/vit_adamw-coslr-300e.py',
]

model = dict(backbone=dict(arch='small'), neck=dict(in_channels=384))

# 16 GPUs x 256 images = 4096
train_dataloader = dict(batch_size=256)
auto_scale_lr = dict(enable=False, base_batch_size=4096)
optim_wrapper = dict(optimizer=dict(lr=2.4e-3))  # 1.5e-4 * 4096 / 256
