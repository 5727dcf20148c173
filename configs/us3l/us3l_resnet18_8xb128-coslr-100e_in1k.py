# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's ImageNet recipe for ResNet-18.
_base_ = './us3l_resnet50_8xb60-coslr-100e_in1k.py'

model = dict(backbone=dict(depth=18), neck=dict(in_channels=512))

# 8 GPUs x 128 images = 1024 (reference), at the same learning rate as 480
train_dataloader = dict(batch_size=128)
auto_scale_lr = dict(enable=False, base_batch_size=1024)
