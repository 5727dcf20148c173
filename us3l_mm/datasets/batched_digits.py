# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The rendering of many digits at once."""
from typing import Any, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from us3l_mm.models.augmentation.operation import on_device


class BatchedDigits:
    """RenderDigit, as the first transform of a batched view.

    It has the methods of
    :class:`~us3l_mm.models.augmentation.resampling.Resampling`.

    Args:
        transform (RenderDigit): The transform.
    """

    num_draws = 7

    def __init__(self, transform: Any):
        self.image_size = transform.image_size
        self.ranges = np.array(transform.ranges).T

    def size(self, size: Tuple[int, int]) -> Tuple[int, int]:
        """Height and width of an image."""
        return self.image_size, self.image_size

    def draw(self, numbers: np.ndarray,
             sizes: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Where each digit is, and how bright.

        Args:
            numbers (ndarray): Uniform in [0, 1), shape (N, 7).
            sizes (ndarray): Heights and widths of the digits, (N, 2).

        Returns:
            tuple: Affine maps from (x, y) in a digit to (x, y) in its image,
            (N, 2, 3), and factors of the brightness, (N, ).
        """
        low, high = self.ranges
        size, lean, shear, stretch, ink = (low +
                                           (high - low) * numbers[:, :5]).T
        angle, stretch = np.deg2rad(lean), np.exp(stretch)
        turn = np.moveaxis(
            np.array([[np.cos(angle), -np.sin(angle)],
                      [np.sin(angle), np.cos(angle)]]), 2, 0)
        form = np.moveaxis(
            np.array([[stretch, shear], [0 * stretch, 1 / stretch]]), 2, 0)
        digit = sizes[:, :1]
        linear = (size / digit[:, 0])[:, None, None] * turn @ form
        middle = size[:, None] / 2 + numbers[:, 5:] * (self.image_size -
                                                       size)[:, None]
        shift = middle[..., None] - linear @ (
            (digit[..., None] - 1) / 2 * np.ones((2, 1)))
        return np.concatenate([linear, shift], axis=2), ink

    def apply(self, rows: Tensor, maps: np.ndarray, ink: np.ndarray) -> Tensor:
        """The images.

        Args:
            rows (Tensor): Digits, from 0 to 255, of shape (N, H, 1, W).
            maps, ink (ndarray): What :meth:`draw` returned.

        Returns:
            Tensor: Of shape (N, 3, image_size, image_size), three equal
            channels.
        """
        digits = rows.transpose(1, 2)
        back = np.linalg.inv(maps[:, :, :2])
        back = np.concatenate([back, -back @ maps[:, :, 2:]], axis=2)
        # From -1 to 1 between the centres of the outermost pixels
        height, width = digits.shape[2:]
        back *= 2 / np.array([[width - 1], [height - 1]])
        back[:, :, 2] -= 1
        pixels = torch.arange(self.image_size, dtype=rows.dtype,
                              device=rows.device)
        y, x = torch.meshgrid(pixels, pixels, indexing='ij')
        places = torch.stack([x, y, torch.ones_like(x)]).flatten(1)
        places = (on_device(back, digits) @ places).mT.view(-1, *x.shape, 2)
        images = F.grid_sample(digits, places, 'bicubic', 'zeros',
                               align_corners=True).clamp_(0, 255)
        images *= on_device(ink, digits).view(-1, 1, 1, 1)
        return images.expand(-1, 3, -1, -1).contiguous()
