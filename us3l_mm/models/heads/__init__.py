# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Losses with something to learn.

A predictor with its loss is MMPretrain's LatentPredictHead.
"""
from torch import nn

from us3l_mm.registry import MODELS
from .feature_distiller import FeatureDistiller
from .switchable_linear_head import SwitchableLinearHead, name_at

# The predictor of a method that has none.
MODELS.register_module(name='Identity', module=nn.Identity)

__all__ = ['FeatureDistiller', 'SwitchableLinearHead', 'name_at']
