# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Fine-tuning of all layers of the network of one width on labels, like any
# other network. The paper fine-tunes on other data sets; the hyper-parameters
# are the project's own and untuned. Another width: --cfg-options
# model.backbone.width=0.5
_base_ = './linear_resnet50_8xb256-coslr-60e_in1k.py'

model = dict(backbone=dict(frozen_stages=-1, norm_eval=False))

optim_wrapper = dict(
    optimizer=dict(
        type='SGD',
        lr=0.4,  # ours, for a batch of 8 x 256
        weight_decay=1e-4))  # ours
