# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's recipe for MoCo v2, 800 epochs, with as many of warm-up.
_base_ = './slimclr-mocov2_resnet50_4xb256-coslr-200e_in1k.py'

train_cfg = dict(max_epochs=800)
