# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .hooks import (AtomicCheckpointHook, CheckAnnotationsHook,
                    CheckPretrainedHook, DynamicSamplerHook, ExactResumeHook,
                    GroupRegHook, PreflightHook, WidthKNNHook)
from .loops import WidthTestLoop, WidthValLoop
from .wrappers import US3LDistributedDataParallel

__all__ = [
    'AtomicCheckpointHook', 'CheckAnnotationsHook', 'CheckPretrainedHook',
    'DynamicSamplerHook', 'ExactResumeHook',
    'GroupRegHook', 'PreflightHook',
    'US3LDistributedDataParallel', 'WidthKNNHook',
    'WidthTestLoop', 'WidthValLoop'
]
