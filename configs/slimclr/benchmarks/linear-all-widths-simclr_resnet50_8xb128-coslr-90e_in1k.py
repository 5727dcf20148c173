# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The reference's linear evaluation of SimCLR.
_base_ = './linear-all-widths-mocov3_resnet50_8xb128-coslr-90e_in1k.py'

optim_wrapper = dict(optimizer=dict(weight_decay=1e-6))  # reference
