# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""scikit-learn's handwritten digits, rendered as small images."""
from typing import List, Optional

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.datasets import BaseDataset
from sklearn.datasets import load_digits

from us3l_mm.registry import DATASETS, TRANSFORMS
from .batched_digits import BatchedDigits

SPLITS = ('train', 'test')


@TRANSFORMS.register_module()
class RenderDigit(BaseTransform):
    """Draw a digit with random place, size, rotation, shear and brightness.

    Two renderings of a digit have nothing in common but the digit, as two
    augmented views of an image.

    Args:
        image_size (int): Height and width of the image in pixels. Defaults to
            32.
        digit_size (tuple[float, float]): Smallest and largest height of the
            digit in pixels. Defaults to (12, 24).
        lean (float): Largest rotation to either side, in degrees. Defaults to
            15.
        shear (float): Largest shear, and largest logarithm of the stretch, in
            either direction. Defaults to 0.15.
        brightness (tuple[float, float]): Smallest and largest factor of the
            brightness. Defaults to (0.3, 1.0).

    Required and modified key: ``img``, a digit (h, h) of uint8, becomes
    (image_size, image_size, 3) with three equal channels.
    """

    def __init__(self, image_size: int = 32, digit_size: tuple = (12, 24),
                 lean: float = 15., shear: float = 0.15,
                 brightness: tuple = (0.3, 1.0)):
        low, high = digit_size
        if not 1 <= low <= high <= image_size:
            raise ValueError(
                'digit_size is (smallest, largest) within the image of '
                f'{image_size} pixels, got {digit_size}.')
        if not 0 < brightness[0] <= brightness[1] <= 1:
            raise ValueError('brightness is (darkest, brightest) in (0, 1], '
                             f'got {brightness}.')
        self.image_size = image_size
        # Of size, lean, shear, logarithm of the stretch, and brightness
        self.ranges = [(low, high), (-lean, lean), (-shear, shear),
                       (-shear, shear), brightness]

    def transform(self, results: dict) -> dict:
        results['img'] = self.render(results['img'], np.random)
        return results

    def batched_form(self) -> BatchedDigits:
        """The same of many digits, for ``BatchAugmentation``."""
        return BatchedDigits(self)

    def render(self, digit: np.ndarray, rng) -> np.ndarray:
        """The image of ``digit``, with random numbers from ``rng``."""
        size, lean, shear, stretch, ink = rng.uniform(
            *np.transpose(self.ranges))
        angle, stretch = np.deg2rad(lean), np.exp(stretch)
        turn = np.array([[np.cos(angle), -np.sin(angle)],
                         [np.sin(angle), np.cos(angle)]])
        linear = size / len(digit) * turn @ [[stretch, shear], [
            0, 1 / stretch]]
        # The centre is placed so that the whole digit is visible.
        middle = size / 2 + rng.uniform(size=2) * (self.image_size - size)
        shift = middle - linear @ np.full(2, (len(digit) - 1) / 2)
        image = cv2.warpAffine(digit, np.column_stack([linear, shift]),
                               (self.image_size, self.image_size),
                               flags=cv2.INTER_CUBIC)
        return np.repeat((ink * image).astype(np.uint8)[..., None], 3, axis=2)


@DATASETS.register_module()
class RenderedDigits(BaseDataset):
    """Handwritten digits at random place, size, lean and brightness.

    The 1797 digits (8x8 pixels, 10 classes) come with scikit-learn, so nothing
    is downloaded. Raw pixels suffice to classify the original digits, but not
    those rendered by :class:`RenderDigit`, which need a representation. Every
    fifth digit belongs to the test split, so the splits share no digit. The
    images depend on the arguments alone.

    Args:
        split (str): 'train' or 'test'.
        num_images (int, optional): Number of images; the digits are used in
            turn. Defaults to None for one image of each digit.
        render (bool): Whether to render; if not, ``img`` is the digit as it
            is, (8, 8), for a pipeline that renders. Defaults to True.
        rendering (dict, optional): Arguments of :class:`RenderDigit`.
        seed (int): The random seed of the rendering. Defaults to 0.
        **kwargs: Other arguments of MMPretrain's ``BaseDataset``.

    Each sample has ``img``, uint8, and ``gt_label``.
    """

    METAINFO = {'classes': tuple('0123456789')}

    def __init__(self, split: str, num_images: Optional[int] = None,
                 render: bool = True, rendering: Optional[dict] = None,
                 seed: int = 0, metainfo: Optional[dict] = None, **kwargs):
        if split not in SPLITS:
            raise ValueError(f'split is one of {SPLITS}, got {split!r}.')
        if num_images is not None and num_images < 1:
            raise ValueError(f'num_images is at least 1, got {num_images}.')
        self.split, self.num_images, self.seed = split, num_images, seed
        self.renderer = RenderDigit(**(rendering or {})) if render else None
        super().__init__(ann_file='', metainfo=metainfo,
                         test_mode=split == 'test', **kwargs)

    def load_data_list(self) -> List[dict]:
        """Render all images."""
        digits, labels = load_digits(return_X_y=True)
        digits = (digits.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        is_test = np.arange(len(digits)) % 5 == 4
        indices = np.flatnonzero(is_test == (self.split == 'test'))
        if self.num_images is not None:
            indices = np.resize(indices, self.num_images)
        # The splits must not have the same places and sizes.
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split)])
        return [
            dict(
                img=self.renderer.render(digits[i], rng)
                if self.renderer else digits[i], gt_label=int(labels[i]))
            for i in indices]
