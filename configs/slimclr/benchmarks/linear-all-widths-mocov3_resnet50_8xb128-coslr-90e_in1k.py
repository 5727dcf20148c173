# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's linear evaluation of MoCo v3.
_base_ = './linear-all-widths-mocov2_resnet50_4xb256-steplr-100e_in1k.py'

# 8 GPUs x 128 images = 1024 (reference)
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=0.4))  # reference
# The curve is counted in iterations and ends where training ends.
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False)]
train_cfg = dict(max_epochs=90)  # reference
