# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The CIFAR recipe on a folder of images: CIFAR-10 as written by
# tools/dataset_converters/npz_to_folder.py, or your own:
#   python tools/train.py <this file> --cfg-options \
#       train_dataloader.dataset.data_root=<folder>
# No kNN during training, since a folder of one's own may have no labels.
_base_ = [
    '../_base_/models/us3l_resnet18_cifar.py',
    '../_base_/datasets/cifar10_folder_us3l.py',
    '../_base_/schedules/cifar_sgd_coslr_400e.py',
    '../_base_/default_runtime.py',
]

# 4 GPUs x 128 images = 512 (reference)
train_dataloader = dict(batch_size=128)
auto_scale_lr = dict(enable=False, base_batch_size=512)
