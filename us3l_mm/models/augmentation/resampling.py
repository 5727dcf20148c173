# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Crop, flip and resizing of many images as two products of matrices."""
import math
from typing import Callable, Dict, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from mmcv.transforms import RandomFlip
from mmpretrain.datasets.transforms import RandomResizedCrop
from torch import Tensor

from .draws import between
from .operation import on_device, require

# Which axes a direction of RandomFlip mirrors: vertical, horizontal.
MIRRORED = {
    None: (False, False),
    'horizontal': (False, True),
    'vertical': (True, False),
    'diagonal': (True, True)}


def triangle(distance: Tensor) -> Tensor:
    """The kernel of bilinear interpolation."""
    return (1 - distance.abs()).clamp_(min=0)


def keys_cubic(distance: Tensor) -> Tensor:
    """The kernel of bicubic interpolation with a = -0.5, as in Pillow.

    Source: R. Keys, "Cubic convolution interpolation for digital image
    processing", 1981. Its two polynomials are written as a sum of two that
    vanish beyond 1 and 2 pixels.
    """
    distance = distance.abs()
    inner = (1 - distance).clamp_(min=0)
    outer = (2 - distance).clamp_(min=0)
    return outer.square() * (outer - 1) / 2 + inner.square() * (1 - 2 * inner)


class Kernel(NamedTuple):
    """How an image is resized.

    Attributes:
        weight (callable): The weight of a pixel by its distance, in pixels.
        antialias (bool): Whether the kernel is as wide as a pixel of the
            result where the image shrinks, as in Pillow. OpenCV interpolates
            between neighbours.
    """

    weight: Callable[[Tensor], Tensor]
    antialias: bool


# By backend and interpolation of RandomResizedCrop
KERNELS: Dict[Tuple[str, str], Kernel] = {
    ('cv2', 'bilinear'): Kernel(triangle, False),
    ('pillow', 'bilinear'): Kernel(triangle, True),
    ('pillow', 'bicubic'): Kernel(keys_cubic, True), }


def axis_weights(start: Tensor, length: Tensor, mirrored: Tensor, before: int,
                 after: int, kernel: Kernel) -> Tensor:
    """The weight of each old pixel in each new one, along one axis.

    Args:
        start, length (Tensor): First pixel and number of pixels of each crop,
            float32 of shape (N, ).
        mirrored (Tensor): 1 for a crop that is mirrored, else 0; as above.
        before, after (int): Pixels of the image and of the result.
        kernel (Kernel): The kernel.

    Returns:
        Tensor: Rows that add up to 1, float32 of shape (N, after, before).
    """
    start, length, mirrored = (each.view(-1, 1, 1)
                               for each in (start, length, mirrored))
    new = torch.arange(after, device=start.device).view(1, -1, 1) + 0.5
    old = torch.arange(before, device=start.device).view(1, 1, -1) + 0.5
    # Centres of pixels, in pixels of the crop
    centre = (new + mirrored * (after - 2 * new)) * (length / after)
    if not kernel.antialias:
        # Beyond the outermost centres, the crop goes on as it ends.
        centre = torch.minimum(centre, length - 0.5).clamp_(min=0.5)
        return kernel.weight(old - (centre + start))
    stretch = (length / after).clamp(min=1)
    weights = kernel.weight((old - (centre + start)) / stretch)
    old = old - start
    weights *= (old > 0).logical_and_(old < length)
    return weights.div_(weights.sum(-1, keepdim=True))


class Resampling:
    """RandomResizedCrop, and RandomFlip anywhere in the pipeline.

    A flip may be moved to the crop, since no other operation distinguishes
    directions.

    Args:
        crop (RandomResizedCrop, optional): None keeps the whole image and its
            size.
        flips (sequence[RandomFlip]): The flips.
    """

    def __init__(self, crop: Optional[RandomResizedCrop],
                 flips: Sequence[RandomFlip]):
        self.crop, self.flips = crop, flips
        self.attempts = 0 if crop is None else crop.max_attempts
        self.num_draws = 4 * self.attempts + len(flips)
        self.kernel = Kernel(triangle, False)
        if crop is not None:
            backend = require(crop, 'backend', ('cv2', 'pillow'))
            named = [name for back, name in KERNELS if back == backend]
            self.kernel = KERNELS[backend,
                                  require(crop, 'interpolation', named)]

    def draw(self, numbers: np.ndarray,
             sizes: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Crops and flips, by the rules of the transforms.

        Args:
            numbers (ndarray): Uniform in [0, 1), shape (N, num_draws).
            sizes (ndarray): Heights and widths of the images, (N, 2).

        Returns:
            tuple: Boxes (top, left, height, width), integers of shape (N, 4),
            and flips (vertical, horizontal), bool of shape (N, 2).
        """
        boxes = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
        if self.crop is not None:
            boxes = self._boxes(numbers[:, :4 * self.attempts], sizes)
        flips = np.zeros((len(sizes), 2), dtype=bool)
        for flip, number in zip(self.flips, numbers[:, 4 * self.attempts:].T):
            flips ^= _mirrored(flip, number)
        return boxes, flips

    def _boxes(self, numbers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """The first attempt that fits, or else the central crop."""
        crop = self.crop
        assert crop is not None
        height, width = sizes.T[:, :, None]
        area, ratio, top, left = numbers.reshape(len(sizes), -1, 4).T
        area = between(area.T, *crop.crop_ratio_range) * height * width
        low, high = crop.aspect_ratio_range
        ratio = np.exp(between(ratio.T, math.log(low), math.log(high)))
        # np.rint rounds halves to even numbers, as the transform does.
        tall = np.rint(np.sqrt(area / ratio))
        wide = np.rint(np.sqrt(area * ratio))
        fits = (0 < wide) & (wide <= width) & (0 < tall) & (tall <= height)
        tried = np.stack([
            np.floor(top.T * (height - tall + 1)),
            np.floor(left.T * (width - wide + 1)), tall, wide], axis=-1)
        tried = np.concatenate([tried, _central(sizes, low, high)[:, None]], 1)
        fits = np.concatenate([fits, np.ones((len(sizes), 1), bool)], 1)
        first = fits.argmax(axis=1)
        return tried[np.arange(len(sizes)), first].astype(np.int64)

    def size(self, size: Tuple[int, int]) -> Tuple[int, int]:
        """Height and width of a view of an image of ``size``."""
        return size if self.crop is None else tuple(self.crop.scale)

    def apply(self, rows: Tensor, boxes: np.ndarray,
              flips: np.ndarray) -> Tensor:
        """The resized crops.

        Args:
            rows (Tensor): Images, from 0 to 255, of shape (N, H, 3, W). The
                rows of all channels are next to each other, so that one
                product is enough for all channels.
            boxes, flips (ndarray): What :meth:`draw` returned.

        Returns:
            Tensor: Views of shape (N, 3, h, w).
        """
        count, height, channels, width = rows.shape
        tall, wide = self.size((height, width))
        single = rows.new_empty(0, dtype=torch.float32)
        crops = on_device(
            np.concatenate([boxes, flips], axis=1).T.astype(np.float32),
            single)
        # Starts, lengths and flips of both axes
        down, across = (axis_weights(start, length, flip, before, after,
                                     self.kernel)
                        for (start, length,
                             flip), before, after in ((crops[::2], height,
                                                       tall), (crops[1::2],
                                                               width, wide)))
        # Pillow and OpenCV resize rows first.
        views = rows.reshape(count, height * channels, width) @ across.to(
            rows.dtype).mT
        if self.kernel.weight is keys_cubic:
            views.clamp_(0, 255)  # as the 8 bits in between do
        views = down.to(rows.dtype) @ views.view(count, height,
                                                 channels * wide)
        if self.kernel.weight is keys_cubic:
            views.clamp_(0, 255)
        views = views.view(count, tall, channels, wide)
        return views.transpose(1, 2).contiguous()


def _central(sizes: np.ndarray, low: float, high: float) -> np.ndarray:
    """The central crops of the nearest allowed aspect ratio, (N, 4)."""
    height, width = sizes.T
    tall = np.where(width < height * low, np.rint(width / low), height)
    wide = np.where(width > height * high, np.rint(height * high), width)
    return np.stack([(height - tall) // 2, (width - wide) // 2, tall, wide],
                    axis=1)


def _mirrored(flip: RandomFlip, numbers: np.ndarray) -> np.ndarray:
    """The axes that ``flip`` mirrors, bool of shape (N, 2)."""
    directions = ([flip.direction] if isinstance(flip.direction, str) else [
        *flip.direction])
    shares = (flip.prob if isinstance(flip.prob, list) else
              [flip.prob / len(directions)] * len(directions))
    found = np.searchsorted(np.cumsum(shares), numbers, side='right')
    return np.array([MIRRORED[each] for each in (*directions, None)])[found]
