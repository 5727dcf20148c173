# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# A universally slimmable network without US3L's ideas: every width has the
# base loss, with targets of its own width; the whole range is sampled from
# the start; plain weight decay.
_base_ = '../us3l_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(distill_head=None, distill_from=None)

# In place of group regularisation: twice its lam.
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
default_hooks = dict(sampler=dict(num_stages=1), group_reg=dict(lam=0.0))
