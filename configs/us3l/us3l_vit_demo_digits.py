# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# `make demo DEMO=vit`: the demo with a small vision transformer instead of the
# ResNet, on the same digits. Values marked *demo* were tuned for five minutes
# on two cores, report included. From so few images, transformers learn more
# slowly than a ResNet, and more slowly still by MoCo v3, the paper's method
# for them: the base loss is therefore that of the other demo.
_base_ = './us3l_resnet18_demo_digits.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='us3l_mm.SlimmableViT',
        # demo: 64 patches of 4 x 4 pixels, and a network to match. Four heads
        # give four different widths.
        arch=dict(
            embed_dims=64, num_layers=3, num_heads=4,
            feedforward_channels=256),
        img_size=32,
        patch_size=4,
        # Whole heads, so that parameters and memory narrow as well; 'input'
        # is the paper's.
        slicing='embed',
        positions='sincos',  # reference: fixed
        out_type='avg_featmap',  # demo: no class token
        width_range=(0.25, 1.0)),  # paper
    neck=dict(in_channels=64))

train_cfg = dict(max_epochs=38)  # demo
optim_wrapper = dict(
    optimizer=dict(
        _delete_=True,
        type='AdamW',  # reference
        lr=2e-3,  # demo
        weight_decay=0.0))  # group regularisation decays instead
# Warm-up over a tenth of training, about the reference's 40 of 300 epochs,
# multiplies the cosine, so that a shorter run has both as well.
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False),
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=40)
]

default_hooks = dict(
    group_reg=dict(
        lam=0.05,  # reference: half of a weight decay of 0.1
        group_dims={2: 1},  # reference: input features of linear layers
        decoupled=True))  # as in the recipe: as AdamW applies it
