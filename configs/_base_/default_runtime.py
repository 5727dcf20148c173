# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# MMPretrain's default runtime, with checkpoints that are always whole and with
# resuming within an epoch.
default_scope = 'mmpretrain'
custom_imports = dict(imports=['us3l_mm'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # While a new file is written, there is one more than max_keep_ckpts.
    checkpoint=dict(
        type='us3l_mm.AtomicCheckpointHook', interval=10, max_keep_ckpts=3),
    exact_resume=dict(type='us3l_mm.ExactResumeHook'),
    non_finite=dict(type='us3l_mm.NonFiniteHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='VisualizationHook', enable=False))

# Without a list of devices, MMEngine's wrapper runs on CPUs too.
model_wrapper_cfg = dict(
    type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    # The timeout of collective operations, in seconds.
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
