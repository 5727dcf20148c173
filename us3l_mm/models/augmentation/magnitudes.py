# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Dict

import numpy as np
from mmpretrain.datasets.transforms.auto_augment import BaseAugTransform

from .draws import between
from .operation import PER_IMAGE


class Magnitudes:
    """Which images a ``BaseAugTransform`` concerns, and how strongly.

    Args:
        transform (BaseAugTransform): The transform.
        fixed (str): The argument with a strength that is the same for all
            images. If it is None, the strength is drawn from
            ``magnitude_range``.
    """

    num_draws = 2

    def __init__(self, transform: BaseAugTransform, fixed: str):
        self.prob = transform.prob
        value = getattr(transform, fixed)
        level = transform.magnitude_level
        if value is not None:
            self.low = self.high = value
            return
        std = transform.magnitude_std
        if std != 'inf' and std > 0:
            raise ValueError(
                f'{type(transform).__name__}(magnitude_std={std}) has no '
                "batched form, magnitude_std is 'inf' or 0. Change it, "
                f'{PER_IMAGE}.')
        begin, end = transform.magnitude_range
        self.high = begin + level / transform.total_level * (end - begin)
        self.low = begin if std == 'inf' else self.high

    def draw(self, numbers: np.ndarray,
             chosen: np.ndarray) -> Dict[str, np.ndarray]:
        """``rows``, the images, and their ``magnitudes``, both (n, )."""
        # The transform compares in this way.
        rows = np.flatnonzero(chosen & (numbers[:, 0] <= self.prob))
        return dict(rows=rows, magnitudes=between(numbers[rows, 1], self.low,
                                                  self.high))
