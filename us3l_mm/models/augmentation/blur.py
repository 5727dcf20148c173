# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Pillow's Gaussian blur of many images, as two products of matrices."""
from typing import Dict

import numpy as np
import torch
from mmpretrain.datasets.transforms import GaussianBlur
from torch import Tensor

from .magnitudes import Magnitudes
from .operation import Operation, on_device

PASSES = 3


def box_radius(sigma: np.ndarray) -> np.ndarray:
    """The radius of the box whose three passes have the variance sigma**2.

    A radius of 1.25 is a box of 3 pixels, and a quarter of those beside it.
    Source: P. Gwosdek et al., "Theoretical foundations of Gaussian convolution
    by extended box filtering", SSVM 2011, which Pillow follows.
    """
    variance = sigma**2 / PASSES
    whole = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    part = ((2 * whole + 1) * (whole * (whole + 1) - 3 * variance) /
            (6 * (variance - (whole + 1)**2)))
    return whole + part


def box_weights(radius: Tensor, size: int, reach: int) -> Tensor:
    """The weight of each pixel in each blurred one, along one axis.

    Beyond its ends, the image goes on with its outermost pixels.

    Args:
        radius (Tensor): Radii of boxes in pixels, shape (N, ).
        size (int): Pixels along the axis.
        reach (int): An integer that no radius is above.

    Returns:
        Tensor: Rows that add up to 1, of shape (N, size, size).
    """
    radius = radius.view(-1, 1, 1)
    new = torch.arange(size, device=radius.device).view(1, -1, 1)
    old = torch.arange(-reach, size + reach, device=radius.device)
    wide = (radius + 1 - (old - new).abs()).clamp_(0, 1)
    wide = wide / (2 * radius + 1)
    weights = wide[:, :, reach:reach + size].clone()
    weights[:, :, 0] += wide[:, :, :reach].sum(-1)
    weights[:, :, -1] += wide[:, :, reach + size:].sum(-1)
    return weights


class Blur(Operation):
    """GaussianBlur, by three passes of a box as in Pillow.

    Args:
        transform (GaussianBlur): The transform.
    """

    def __init__(self, transform: GaussianBlur):
        self.magnitudes = Magnitudes(transform, 'radius')
        self.num_draws = self.magnitudes.num_draws

    def draw(self, numbers: np.ndarray,
             chosen: np.ndarray) -> Dict[str, np.ndarray]:
        """The images and their standard deviations in pixels."""
        return self.magnitudes.draw(numbers, chosen)

    def apply(self, images: Tensor, drawn: Dict[str, np.ndarray]) -> Tensor:
        """The images, some of them blurred."""
        if not len(drawn['rows']):
            return images
        rows = on_device(drawn['rows'], images)
        radius = box_radius(drawn['magnitudes']).astype(np.float32)
        reach = int(np.ceil(radius.max()))
        radius = on_device(radius, images.new_empty(0, dtype=torch.float32))
        sharp = images.index_select(0, rows)
        count, channels, height, width = sharp.shape
        across, down = (torch.linalg.matrix_power(
            box_weights(radius, size, reach), PASSES).to(images.dtype)
                        for size in (width, height))
        blurred = sharp.view(count, channels * height, width) @ across.mT
        blurred = down[:, None] @ blurred.view_as(sharp)
        return images.index_copy_(0, rows, blurred)
