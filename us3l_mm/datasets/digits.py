# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""scikit-learn's handwritten digits, rendered into small photographs."""
from typing import List, Optional

import cv2
import numpy as np
from mmpretrain.datasets import BaseDataset
from sklearn.datasets import load_digits

from us3l_mm.registry import DATASETS

SPLITS = ('train', 'test')


@DATASETS.register_module()
class RenderedDigits(BaseDataset):
    """Handwritten digits at random place, size and brightness.

    The 1797 digits (8x8 pixels, 10 classes) ship inside scikit-learn, so
    nothing is downloaded. As they are they prove nothing about a
    representation, raw pixels being enough; here each is enlarged and put
    somewhere on a larger image. Every fifth digit belongs to the test split,
    so no digit is in both. The images are a function of the arguments alone.

    Args:
        split (str): 'train' or 'test'.
        num_images (int): How many images to render; digits are taken in turn.
            Defaults to 4000.
        image_size (int): Height and width of an image in pixels. Defaults to
            32.
        digit_size (tuple[int, int]): Smallest and largest height of a digit
            in pixels. Defaults to (12, 24).
        seed (int): Of place, size and brightness. Defaults to 0.
        **kwargs: Those of MMPretrain's ``BaseDataset`` (``pipeline``, ...).

    Each sample has ``img``, (image_size, image_size, 3) uint8 with three equal
    channels, and ``gt_label``.
    """

    METAINFO = {'classes': tuple('0123456789')}

    def __init__(self, split: str, num_images: int = 4000,
                 image_size: int = 32, digit_size: tuple = (12, 24),
                 seed: int = 0, metainfo: Optional[dict] = None, **kwargs):
        if split not in SPLITS:
            raise ValueError(f'split is one of {SPLITS}, got {split!r}.')
        if num_images < 1:
            raise ValueError(f'num_images is at least 1, got {num_images}.')
        low, high = digit_size
        if not 1 <= low <= high <= image_size:
            raise ValueError(
                f'digit_size is (smallest, largest) within the image of '
                f'{image_size} pixels, got {digit_size}.')
        self.split, self.num_images = split, num_images
        self.image_size, self.digit_size = image_size, (low, high)
        self.seed = seed
        super().__init__(ann_file='', metainfo=metainfo,
                         test_mode=split == 'test', **kwargs)

    def load_data_list(self) -> List[dict]:
        """Render all images."""
        digits, labels = load_digits(return_X_y=True)
        digits = (digits.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        is_test = np.arange(len(digits)) % 5 == 4
        chosen = np.flatnonzero(is_test == (self.split == 'test'))
        # The splits must not repeat each other's places and sizes.
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split)])
        indices = np.resize(chosen, self.num_images)
        return [dict(img=self.render(digits[i], rng), gt_label=int(labels[i]))
                for i in indices]

    def render(self, digit: np.ndarray, rng: np.random.Generator
               ) -> np.ndarray:
        """One image, (image_size, image_size, 3), of a digit (8, 8)."""
        low, high = self.digit_size
        size = int(rng.integers(low, high + 1))
        digit = cv2.resize(digit, (size, size), interpolation=cv2.INTER_CUBIC)
        top, left = rng.integers(0, self.image_size - size + 1, 2)
        image = np.zeros((self.image_size, self.image_size))
        image[top:top + size, left:left + size] = digit * rng.uniform(0.3, 1.0)
        return np.repeat(image.astype(np.uint8)[..., None], 3, axis=2)
