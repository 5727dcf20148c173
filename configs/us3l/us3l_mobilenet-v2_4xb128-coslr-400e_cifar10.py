# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's CIFAR recipe for MobileNetV2: that for ResNet-18, with
# sandwich sampling over the whole range from the start.
_base_ = [
    '../_base_/models/us3l_mobilenet-v2_cifar.py',
    '../_base_/datasets/cifar10_us3l.py',
    '../_base_/schedules/cifar_sgd_coslr_400e.py',
    '../_base_/default_runtime.py',
]

# 4 GPUs x 128 images = 512 (reference); learning rate 0.5 (reference), from
# the schedule
train_dataloader = dict(batch_size=128)
auto_scale_lr = dict(enable=False, base_batch_size=512)

# No dynamic sampling, and plain decay for half of training (reference)
custom_hooks = [
    *[
        dict(hook, num_samples=3, num_stages=1) if hook.type
        == 'us3l_mm.DynamicSamplerHook' else dict(hook, warmup_epochs=200)
        if hook.type == 'us3l_mm.GroupRegHook' else hook
        for hook in _base_.custom_hooks
    ],
    dict(
        type='us3l_mm.WidthKNNHook',
        bank_dataloader=_base_.knn_bank_dataloader,
        query_dataloader=_base_.knn_query_dataloader,
        widths=(1.0, 0.75, 0.5, 0.25),
        interval=20,
        k=20)
]
