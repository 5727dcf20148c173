# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .coco import coco_folder, digit_scenes
from .colour_order import SwapRedBlue
from .digit_scenes import SceneSettings, write_digit_scenes
from .digits import RenderDigit, RenderedDigits
from .image_folder import ImageFolder
from .load_image import LoadImage, UnreadableImageError
from .seeded_augmentation import SeedAugmentation, SeededSampler

__all__ = [
    'ImageFolder', 'LoadImage', 'RenderDigit', 'RenderedDigits',
    'SceneSettings', 'SeedAugmentation', 'SeededSampler', 'SwapRedBlue',
    'UnreadableImageError', 'coco_folder', 'digit_scenes',
    'write_digit_scenes']
