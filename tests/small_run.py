# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A small real run: rendered digits, a narrow ResNet, the whole recipe."""
from itertools import count

from mmengine.config import Config

RUNS = count()
VIEW = [
    dict(type='RandomResizedCrop', scale=16, crop_ratio_range=(.4, 1.)),
    dict(type='ColorJitter', brightness=.4, contrast=.4)]
HEAD = dict(
    type='us3l_mm.PredictionHead',
    predictor=dict(type='us3l_mm.Predictor', in_channels=16, hid_channels=32,
                   out_channels=16, num_layers=2, with_last_bn=False),
    loss=dict(type='CosineSimilarityLoss'))


def small_cfg(work_dir, **changes) -> Config:
    """A complete training config; ``changes`` are dotted keys, as in
    ``--cfg-options``."""
    cfg = Config(
        dict(
            default_scope='mmpretrain', custom_imports=dict(
                imports=['us3l_mm'], allow_failed_imports=False), model=dict(
                    type='us3l_mm.US3LAlgorithm', backbone=dict(
                        type='us3l_mm.SlimmableResNet_CIFAR', depth=18,
                        base_channels=16, stem_channels=16, num_stages=2,
                        strides=(1, 2), dilations=(1, 1), out_indices=(1, )),
                    neck=dict(type='us3l_mm.SlimmableProjector',
                              in_channels=32, hid_channels=32, out_channels=16,
                              num_layers=3, with_last_bn=False), head=HEAD,
                    distill_head=HEAD, data_preprocessor=dict(
                        mean=[64.] * 3, std=[64.] * 3)),
            train_dataloader=dict(
                batch_size=8, num_workers=0, sampler=dict(
                    type='us3l_mm.SeededSampler', shuffle=True),
                collate_fn=dict(type='default_collate'), dataset=dict(
                    type='us3l_mm.RenderedDigits', split='train',
                    num_images=24, pipeline=[
                        dict(type='us3l_mm.SeedAugmentation'),
                        dict(type='MultiView', num_views=[2], transforms=[
                            VIEW]),
                        dict(type='PackInputs')])),
            train_cfg=dict(by_epoch=True, max_epochs=4), optim_wrapper=dict(
                type='us3l_mm.MultiPassOptimWrapper', optimizer=dict(
                    type='SGD', lr=.05, momentum=.9)), param_scheduler=[
                        dict(type='CosineAnnealingLR', by_epoch=True,
                             convert_to_iter_based=True)],
            default_hooks=dict(
                preflight=dict(type='us3l_mm.PreflightHook'),
                sampler=dict(type='us3l_mm.DynamicSamplerHook'),
                group_reg=dict(type='us3l_mm.GroupRegHook'), logger=dict(
                    type='LoggerHook', interval=1), checkpoint=dict(
                        type='us3l_mm.AtomicCheckpointHook',
                        interval=1), exact_resume=dict(
                            type='us3l_mm.ExactResumeHook'),
                sampler_seed=dict(
                    type='DistSamplerSeedHook')), randomness=dict(
                        seed=0), log_level='WARNING', work_dir=str(work_dir)))
    # MMEngine names a run by the second, and runs of one name share a logger.
    cfg.experiment_name = f'run_{next(RUNS)}'
    cfg.merge_from_dict(changes)
    return cfg
