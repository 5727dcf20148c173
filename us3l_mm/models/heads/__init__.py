# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .contrast import (Contrast, MoCoV2Contrast, MoCoV3Contrast,
                       SimCLRContrast)
from .feature_distiller import FeatureDistiller
from .pair_head import PairHead
from .prediction_head import PredictionHead
from .rotation_head import RotationHead
from .switchable_linear_head import SwitchableLinearHead

__all__ = [
    'Contrast', 'FeatureDistiller', 'MoCoV2Contrast', 'MoCoV3Contrast',
    'PairHead', 'PredictionHead', 'RotationHead', 'SimCLRContrast',
    'SwitchableLinearHead']
