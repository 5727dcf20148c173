# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .hooks import (AtomicCheckpointHook, CalibrationHook,
                    CheckAnnotationsHook, CheckPretrainedHook,
                    CollapseMonitorHook, CompileHook, DynamicSamplerHook,
                    ExactResumeHook, GroupRegHook, NonFiniteHook,
                    PreflightHook, WidthKNNHook)
from .loops import WidthTestLoop, WidthValLoop
from .wrappers import (CpuAmpOptimWrapper, MultiPassDistributedDataParallel,
                       MultiPassOptimWrapper)

__all__ = [
    'AtomicCheckpointHook', 'CalibrationHook', 'CheckAnnotationsHook',
    'CheckPretrainedHook', 'CollapseMonitorHook', 'CompileHook',
    'CpuAmpOptimWrapper', 'DynamicSamplerHook', 'ExactResumeHook',
    'GroupRegHook', 'MultiPassDistributedDataParallel',
    'MultiPassOptimWrapper', 'NonFiniteHook', 'PreflightHook', 'WidthKNNHook',
    'WidthTestLoop', 'WidthValLoop'
]
