# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The slimmable probe that the paper compares with: one linear classifier,
# whose leading columns the narrower widths use.
_base_ = './linear-all-widths-mocov2_resnet50_4xb256-steplr-100e_in1k.py'

model = dict(head=dict(shared=True))
