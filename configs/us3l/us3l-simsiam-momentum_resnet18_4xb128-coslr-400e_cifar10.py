# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# SimSiam with a momentum teacher. The reference has no recipe for it: learning
# rate, weight decay and sampling are those of its BYOL recipe and untested.
_base_ = './us3l-byol_resnet18_4xb128-coslr-400e_cifar10.py'

# Layers as in SimSiam, arXiv 2011.10566, section 3: a projector that ends in a
# batch norm without affine parameters, and predictors with a bottleneck.
model = dict(
    neck=dict(with_last_bn=True, with_last_bn_affine=False),
    head=dict(predictor=dict(hid_channels=512, with_last_bias=True)),
    distill_head=dict(predictor=dict(hid_channels=512, with_last_bias=True)))
