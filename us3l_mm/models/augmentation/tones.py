# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Grey and solarised images."""
from typing import Dict

import numpy as np
import torch
from mmcv.transforms import RandomGrayscale
from mmpretrain.datasets.transforms import Solarize
from torch import Tensor

from .colour_jitter import luminance
from .magnitudes import Magnitudes
from .operation import Operation, on_device, require


class Grey(Operation):
    """RandomGrayscale, which keeps three channels.

    Args:
        transform (RandomGrayscale): The transform.
    """

    num_draws = 1

    def __init__(self, transform: RandomGrayscale):
        require(transform, 'keep_channels', (True, ))
        require(transform, 'color_format', ('bgr', 'rgb'))
        weights = transform.channel_weights
        if len(weights) != 3:
            raise ValueError('RandomGrayscale.channel_weights has a weight for'
                             f' each of three channels, got {weights}.')
        self.prob = transform.prob
        self.weights = tuple(float(w) / sum(weights) for w in weights)

    def draw(self, numbers: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """The images that become grey, (n, )."""
        return np.flatnonzero(chosen & (numbers[:, 0] < self.prob))

    def apply(self, images: Tensor, drawn: np.ndarray) -> Tensor:
        """The images, some of them grey."""
        rows = on_device(drawn, images)
        grey = luminance(images.index_select(0, rows), self.weights)
        return images.index_copy_(
            0, rows, grey[:, None].expand(-1, images.shape[1], -1, -1))


class Solarise(Operation):
    """Solarize: values from a threshold on are inverted.

    Args:
        transform (Solarize): The transform.
    """

    def __init__(self, transform: Solarize):
        self.magnitudes = Magnitudes(transform, 'thr')
        self.num_draws = self.magnitudes.num_draws

    def draw(self, numbers: np.ndarray,
             chosen: np.ndarray) -> Dict[str, np.ndarray]:
        """The images and their thresholds: ``rows`` and ``magnitudes``."""
        return self.magnitudes.draw(numbers, chosen)

    def apply(self, images: Tensor, drawn: Dict[str, np.ndarray]) -> Tensor:
        """The images, some of them solarised."""
        rows = on_device(drawn['rows'], images)
        threshold = on_device(drawn['magnitudes'], images)
        some = images.index_select(0, rows)
        inverted = torch.where(some < threshold.view(-1, 1, 1, 1), some,
                               255 - some)
        return images.index_copy_(0, rows, inverted)
