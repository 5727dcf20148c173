# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's CIFAR recipe: SimCLR-momentum with InfoNCE, cosine
# distillation, 400 epochs.
_base_ = [
    '../_base_/models/us3l_resnet18_cifar.py',
    '../_base_/datasets/cifar10_us3l.py',
    '../_base_/schedules/cifar_sgd_coslr_400e.py',
    '../_base_/default_runtime.py',
]

# 4 GPUs x 128 images = 512 (reference)
train_dataloader = dict(batch_size=128)
auto_scale_lr = dict(enable=False, base_batch_size=512)

custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type='us3l_mm.WidthKNNHook',
        bank_dataloader=_base_.knn_bank_dataloader,
        query_dataloader=_base_.knn_query_dataloader,
        widths=(1.0, 0.75, 0.5, 0.25),
        interval=20,
        k=20)
]
