# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# ViT-small on ImageNet-1k, at the batch and schedule of MoCo v3. This recipe is
# the project's own, by the linear rule from the reference's CIFAR run; it has
# not been run.
_base_ = [
    '../_base_/models/us3l_vit.py',
    '../_base_/datasets/imagenet_us3l_vit.py',
    '../_base_/schedules/vit_adamw_coslr_300e.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(arch='small'))

# 16 GPUs x 256 images = 4096
train_dataloader = dict(batch_size=256)
auto_scale_lr = dict(enable=False, base_batch_size=4096)
optim_wrapper = dict(
    type='AmpOptimWrapper', optimizer=dict(lr=2.4e-3))  # 1.5e-4 * 4096 / 256
