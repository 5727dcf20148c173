# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# A slimmable network (arXiv 1812.08928): a fixed list of widths, each with
# batch norms and a base loss of its own; plain weight decay.
_base_ = '../us3l_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(
    backbone=dict(
        norm_cfg=dict(type='SwitchableBN', widths=[1.0, 0.75, 0.5, 0.25])),
    distill_head=None,
    distill_from=None)

# In place of group regularisation: twice its lam.
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
default_hooks = dict(
    sampler=dict(widths=[1.0, 0.75, 0.5, 0.25]), group_reg=dict(lam=0.0))
