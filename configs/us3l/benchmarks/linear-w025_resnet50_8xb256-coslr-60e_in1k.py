# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
_base_ = './linear-w100_resnet50_8xb256-coslr-60e_in1k.py'

model = dict(backbone=dict(width=0.25))
