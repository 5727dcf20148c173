# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# MoCo v2 on CIFAR-10 with a ResNet-18: the recipe for ImageNet at the size of
# US3L's for CIFAR. This recipe is *ours* and has not been run.
_base_ = [
    '../_base_/models/slimclr-mocov2_resnet50.py',
    '../_base_/datasets/cifar10_two-views.py',
    '../_base_/schedules/slimclr_sgd-coslr-200e.py',
]

model = dict(
    backbone=dict(type='us3l_mm.SlimmableResNet_CIFAR', depth=18),
    neck=dict(in_channels=512, hid_channels=512),
    head=dict(queue_length=4096),  # about a tenth of the images
    # A paper's m = 0.99: there are a tenth of the iterations of ImageNet.
    teacher=dict(momentum=0.01))

# 4 GPUs x 128 images = 512. The queue takes whole batches.
train_dataloader = dict(batch_size=128, drop_last=True)
auto_scale_lr = dict(enable=False, base_batch_size=512)
optim_wrapper = dict(optimizer=dict(lr=0.1))  # 0.2 * 512 / 1024
train_cfg = dict(max_epochs=400)

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
