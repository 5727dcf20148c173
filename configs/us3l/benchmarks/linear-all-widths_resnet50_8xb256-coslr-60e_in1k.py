# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Linear classifiers of four widths, trained and validated together.
_base_ = './linear_resnet50_8xb256-coslr-60e_in1k.py'

model = dict(
    type='us3l_mm.AllWidthsClassifier',
    backbone=dict(width=None),
    head=dict(
        type='us3l_mm.SwitchableLinearHead',
        widths=[1.0, 0.75, 0.5, 0.25],
        distill_weight=0.0))  # paper; SlimCLR's recipe has 0.5

# Metrics are named accuracy/top1_w0.50 and so on.
val_cfg = dict(type='us3l_mm.WidthValLoop')
test_cfg = dict(type='us3l_mm.WidthTestLoop')
# 'auto' selects by the widest; accuracy/top1_w0.50 and so on by another.
default_hooks = dict(checkpoint=dict(save_best='auto'))
