# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# What every pre-training run shares: MMPretrain's defaults plus what a
# slimmable training step needs.
default_scope = 'mmpretrain'
custom_imports = dict(imports=['us3l_mm'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # One more than max_keep_ckpts is there while a new one is written.
    checkpoint=dict(
        type='us3l_mm.AtomicCheckpointHook', interval=10, max_keep_ckpts=3),
    exact_resume=dict(type='us3l_mm.ExactResumeHook'),
    # Steps that are not finite are left out; too many of them end the run.
    non_finite=dict(type='us3l_mm.NonFiniteHook'),
    collapse=dict(type='us3l_mm.CollapseMonitorHook'),  # warns
    compile=dict(
        type='us3l_mm.CompileHook'),  # with --cfg-options compile=True
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='VisualizationHook', enable=False))

# MMEngine's own wrapper would train the full width alone.
model_wrapper_cfg = dict(type='us3l_mm.US3LDistributedDataParallel')

env_cfg = dict(
    # Random widths bring new convolution shapes nearly every iteration, and
    # the tuner would time each of them anew.
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    # Seconds without an answer of another process before the run gives up.
    dist_cfg=dict(backend='nccl', timeout=1800))

# For TensorBoard:
# --cfg-options visualizer.vis_backends.0.type=TensorboardVisBackend
visualizer = dict(
    type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(window_size=10)
log_level = 'INFO'

load_from = None
resume = False

randomness = dict(seed=0, deterministic=False)
