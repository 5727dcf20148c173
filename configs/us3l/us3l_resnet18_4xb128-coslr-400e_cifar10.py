# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's CIFAR recipe: SimCLR with a momentum teacher, InfoNCE, cosine
# distillation, 400 epochs.
_base_ = [
    '../_base_/models/us3l-simclr_resnet18_cifar.py',
    '../_base_/datasets/cifar10_two-views.py',
    '../_base_/schedules/cifar_sgd-coslr-400e.py',
]

# 4 GPUs x 128 images = 512 (reference)
train_dataloader = dict(batch_size=128)
auto_scale_lr = dict(enable=False, base_batch_size=512)

default_hooks = dict(
    # None augments each image on its own, in the workers (docs/fidelity.md).
    augmentation=dict(type='us3l_mm.BatchAugmentationHook'),
    knn=dict(
        type='us3l_mm.WidthKNNHook',
        bank_dataloader=_base_.knn_bank_dataloader,
        query_dataloader=_base_.knn_query_dataloader,
        widths=(1.0, 0.75, 0.5, 0.25),
        interval=20,
        k=20))
