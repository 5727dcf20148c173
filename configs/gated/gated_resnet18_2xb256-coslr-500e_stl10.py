# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's recipe for STL-10, images of 96 pixels. Another compute budget:
# --cfg-options model.budget.target=0.5, with a --work-dir of its own.
_base_ = [
    '../_base_/models/gated-vicreg_resnet18.py',
    '../_base_/datasets/stl10_vicreg-views.py',
    '../_base_/schedules/gated_lars-coslr-500e.py',
]

# 2 GPUs x 256 images = 512 (reference)
train_dataloader = dict(batch_size=256)
auto_scale_lr = dict(enable=False, base_batch_size=512)

default_hooks = dict(
    # None augments each image on its own, in the workers (docs/fidelity.md).
    augmentation=dict(type='us3l_mm.BatchAugmentationHook'),
    knn=dict(
        type='us3l_mm.WidthKNNHook',
        bank_dataloader=_base_.knn_bank_dataloader,
        query_dataloader=_base_.knn_query_dataloader,
        widths=('dense', 'gated'),
        interval=20,
        k=20))
