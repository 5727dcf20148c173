# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# What `make demo` trains: the whole recipe of US3L on a small network and
# handwritten digits that ship inside scikit-learn. Values marked *demo* were
# tuned for five minutes on two cores, report included.
_base_ = '../_base_/us3l_runtime.py'

model = dict(
    type='us3l_mm.US3LAlgorithm',
    backbone=dict(
        type='us3l_mm.SlimmableResNet',
        depth=18,
        # demo: half the channels of a ResNet-18, and its first three stages,
        # which end in a map of 2x2 pixels.
        base_channels=32,
        stem_channels=32,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2, ),
        width_range=(0.25, 1.0),  # paper
        norm_cfg=dict(type='BN')),
    # demo: an eighth of the reference's projector and predictor
    neck=dict(
        type='us3l_mm.SlimmableProjector',
        in_channels=128,
        hid_channels=256,
        out_channels=128,
        num_layers=3,  # reference
        with_last_bn=False,  # reference
        with_bias=True,  # reference
        with_last_bias=True),  # reference
    # SimCLR has no predictor.
    head=dict(
        type='us3l_mm.PredictionHead',
        loss=dict(type='us3l_mm.InfoNCELoss',
                  temperature=0.15)),  # demo: learns sooner than with 0.5
    distill_head=dict(
        type='us3l_mm.PredictionHead',
        predictor=dict(
            type='us3l_mm.Predictor',
            in_channels=128,
            hid_channels=256,
            out_channels=128,
            num_layers=2,  # reference
            with_last_bn=False,  # reference
            with_last_bias=True),  # reference
        loss=dict(type='CosineSimilarityLoss')),  # reference
    base_from='teacher',  # paper, guideline 1
    distill_from='teacher',  # paper, guideline 2
    share_predictor=False,  # paper, guideline 3
    # demo: some hundred iterations are too few for the paper's 0.01
    teacher=dict(momentum=0.02),
    update_mode='sequential')  # reference: an optimizer step per pass

data_preprocessor = dict(
    type='SelfSupDataPreprocessor', mean=[127.5] * 3, std=[63.75] * 3)

# The two views are two renderings of one digit, which differ in position,
# size, slant and brightness.
view_pipeline = [dict(type='us3l_mm.RenderDigit')]
train_pipeline = [
    dict(type='us3l_mm.SeedAugmentation'),
    dict(type='MultiView', num_views=[2], transforms=[view_pipeline]),
    dict(type='PackInputs')
]
test_pipeline = [dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=128,
    num_workers=0,  # the views are made in batches, which leaves little to do
    drop_last=True,
    sampler=dict(type='us3l_mm.SeededSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='us3l_mm.RenderedDigits',
        split='train',  # 1438 digits
        render=False,  # rendered with the views
        pipeline=train_pipeline))

# Labelled images for kNN: the queries are classified by the bank.
knn_bank_dataloader = dict(
    batch_size=500,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='us3l_mm.RenderedDigits',
        split='train',
        num_images=2000,
        pipeline=test_pipeline))
knn_query_dataloader = dict(
    batch_size=500,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='us3l_mm.RenderedDigits',
        split='test',
        num_images=1000,
        pipeline=test_pipeline))

train_cfg = dict(by_epoch=True, max_epochs=60)
optim_wrapper = dict(
    type='us3l_mm.MultiPassOptimWrapper',
    optimizer=dict(
        type='SGD',
        lr=0.5,  # demo
        momentum=0.9,  # reference
        weight_decay=0.0))  # group regularisation decays instead
# The curve is counted in iterations and ends where training ends.
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False)]
auto_scale_lr = dict(enable=False, base_batch_size=128)

default_hooks = dict(
    augmentation=dict(type='us3l_mm.BatchAugmentationHook'),
    logger=dict(type='LoggerHook', interval=11),  # every epoch
    checkpoint=dict(interval=10, max_keep_ckpts=1),
    group_reg=dict(
        type='us3l_mm.GroupRegHook',
        lam=5e-5,  # reference: half of a weight decay of 1e-4
        alpha=0.05,  # paper
        warmup_epochs=0))  # reference
randomness = dict(seed=0)
