# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's run of a vision transformer: ViT-tiny on CIFAR-10 at 224
# pixels.
_base_ = [
    '../_base_/models/us3l-mocov3_vit.py',
    '../_base_/datasets/cifar10_two-views_byol.py',
    '../_base_/schedules/vit_adamw-coslr-300e.py',
]

# 8 GPUs x 64 images = 512 (reference)
train_dataloader = dict(batch_size=64)
auto_scale_lr = dict(enable=False, base_batch_size=512)
optim_wrapper = dict(optimizer=dict(lr=3e-4))  # reference: 1.5e-4 * 512 / 256

default_hooks = dict(
    knn=dict(
        type='us3l_mm.WidthKNNHook',
        bank_dataloader=_base_.knn_bank_dataloader,
        query_dataloader=_base_.knn_query_dataloader,
        widths=(1.0, 0.75, 0.5, 0.25),
        interval=20,
        k=20))
