# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A head is MMPretrain's LatentPredictHead: a predictor and a loss."""
from torch import nn

from us3l_mm.registry import MODELS
from .feature_distiller import FeatureDistiller

# The predictor of a method that has none.
MODELS.register_module(name='Identity', module=nn.Identity)

__all__ = ['FeatureDistiller']
