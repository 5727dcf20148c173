# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Without the distance between the embeddings of the two views.
_base_ = '../gated_resnet18_2xb256-coslr-500e_cifar10.py'

model = dict(head=dict(loss=dict(invariance=0.0)))
