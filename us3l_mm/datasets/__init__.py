# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .coco import coco_folder, digit_scenes
from .colour_order import SwapRedBlue
from .digit_scenes import SceneSettings, write_digit_scenes
from .digits import RenderDigit, RenderedDigits
from .seeded_augmentation import SeedAugmentation, SeededSampler

__all__ = [
    'RenderDigit', 'RenderedDigits', 'SceneSettings', 'SeedAugmentation',
    'SeededSampler', 'SwapRedBlue', 'coco_folder', 'digit_scenes',
    'write_digit_scenes']
