# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# `make demo DEMO=vit`: the demo with a small vision transformer instead of the
# ResNet, on the same digits. Values marked *demo* were tuned for five minutes on
# two cores, report included. Transformers learn slower than a ResNet from so few
# images, and slower still by MoCo v3, the paper's method for them: so the base
# method is that of the other demo.
_base_ = ['us3l_resnet18_demo_digits.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='us3l_mm.SlimmableViT',
        # demo: 64 patches of 4 x 4 pixels, and a network to match; four heads,
        # so there are four different widths
        arch=dict(
            embed_dims=64, num_layers=3, num_heads=4,
            feedforward_channels=256),
        img_size=32,
        patch_size=4,
        # Whole heads, so that parameters and memory narrow as well; 'input'
        # is the paper's.
        slice='embed',
        positions='sincos',  # reference: fixed
        out_type='avg_featmap',  # demo: no class token
        width_range=(0.25, 1.0)))  # paper

train_cfg = dict(max_epochs=38)  # demo
optim_wrapper = dict(
    optimizer=dict(
        _delete_=True,
        type='AdamW',  # reference
        lr=2e-3,  # demo
        weight_decay=0.0))  # GroupRegHook decays instead
# Warm-up of a tenth of training, like the reference's 40 of 300 epochs, on top
# of the cosine, so that a shorter training has both as well.
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False),
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=40)
]

custom_hooks = [
    *_base_.custom_hooks[:2],
    dict(
        type='us3l_mm.GroupRegHook',
        lam=0.05,  # reference: half of a weight decay of 0.1
        alpha=0.05,  # paper
        group_dims={2: 1},  # reference: input features of linear layers
        decoupled=True),  # ours: as AdamW applies it
]
