# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .digits import RenderDigit, RenderedDigits
from .seeded_augmentation import SeedAugmentation, SeededSampler

__all__ = [
    'RenderDigit', 'RenderedDigits', 'SeedAugmentation', 'SeededSampler'
]
