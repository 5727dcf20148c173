# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .hooks import (CheckAnnotationsHook, CheckPretrainedHook,
                    DynamicSamplerHook, GroupRegHook, PreflightHook,
                    WidthKNNHook)
from .loops import WidthTestLoop, WidthValLoop
from .wrappers import US3LDistributedDataParallel

__all__ = [
    'CheckAnnotationsHook', 'CheckPretrainedHook', 'DynamicSamplerHook',
    'GroupRegHook', 'PreflightHook',
    'US3LDistributedDataParallel', 'WidthKNNHook',
    'WidthTestLoop', 'WidthValLoop'
]
