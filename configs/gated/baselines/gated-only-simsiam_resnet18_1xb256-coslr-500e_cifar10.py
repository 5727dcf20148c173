# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# A gated network alone, by SimSiam: the authors' method of 2022, on one GPU.
_base_ = '../gated_resnet18_2xb256-coslr-500e_cifar10.py'

model = dict(
    modes=('gated', 'gated'),
    neck=dict(
        # Biases in front of norms, which take them away.
        with_bias=False,
        with_last_bn=True,
        with_last_bn_affine=False,
        with_last_bias=False),
    head=dict(
        loss=dict(_delete_=True, type='CosineSimilarityLoss'),
        predictor=dict(
            type='us3l_mm.Predictor',
            in_channels=2048,
            hid_channels=512,  # reference
            out_channels=2048,
            num_layers=2,
            with_last_bn=False,
            with_last_bias=True)))

optim_wrapper = dict(
    optimizer=dict(
        _delete_=True,
        type='SGD',
        lr=0.5,  # reference, for a batch of 256
        momentum=0.9,
        weight_decay=1e-5),  # reference
    paramwise_cfg=dict(custom_keys={'predictor': dict(fix_lr=True)}))
auto_scale_lr = dict(base_batch_size=256)

default_hooks = dict(
    # The rate of the predictor stays (reference). --auto-scale-lr leaves it.
    predictor_lr=dict(type='SimSiamHook', fix_pred_lr=True, lr=0.5),
    knn=dict(widths=('gated', )))
