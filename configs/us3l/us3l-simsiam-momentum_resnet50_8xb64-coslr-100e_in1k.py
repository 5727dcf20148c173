# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's ImageNet recipe for ResNet-50 on SimSiam with a momentum
# teacher: that for ResNet-18, with the sandwich rule over the whole range from
# the start and norms over all processes.
_base_ = './us3l-simsiam-momentum_resnet18_8xb128-coslr-100e_in1k.py'

model = dict(
    backbone=dict(depth=50), neck=dict(in_channels=2048),
    sync_norms=True)  # reference

# 8 GPUs x 64 images = 512 (reference), at the same learning rate as 1024
train_dataloader = dict(batch_size=64)
auto_scale_lr = dict(enable=False, base_batch_size=512)
default_hooks = dict(sampler=dict(num_stages=1))  # reference
