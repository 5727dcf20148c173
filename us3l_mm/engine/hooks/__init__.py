# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .check_annotations_hook import CheckAnnotationsHook
from .check_pretrained_hook import CheckPretrainedHook
from .dynamic_sampler_hook import DynamicSamplerHook
from .group_reg_hook import GroupRegHook
from .preflight_hook import PreflightHook
from .width_knn_hook import WidthKNNHook

__all__ = [
    'CheckAnnotationsHook', 'CheckPretrainedHook', 'DynamicSamplerHook',
    'GroupRegHook', 'PreflightHook', 'WidthKNNHook'
]
