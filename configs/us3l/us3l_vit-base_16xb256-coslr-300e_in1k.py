# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# ViT-base on ImageNet-1k: the recipe of ViT-small, *ours* and not run.
_base_ = './us3l_vit-small_16xb256-coslr-300e_in1k.py'

model = dict(backbone=dict(arch='base'), neck=dict(in_channels=768))
