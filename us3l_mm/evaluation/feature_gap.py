# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""How far the features of a network are from those of another one."""
from dataclasses import dataclass
from typing import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class FeatureGap:
    """The difference between the features of two networks, over images.

    Attributes:
        error (float): The root mean square of the difference, as a share of
            that of the features themselves.
        cosine (float): The mean cosine similarity of an image's features.
        neighbours (float): The share of images with the same nearest
            neighbour among the others, by cosine similarity.
        images (int): Number of images.
    """

    error: float
    cosine: float
    neighbours: float
    images: int

    def __str__(self) -> str:
        """The gap in words."""
        return (f'an error of {100 * self.error:.2g} % of the features, a '
                f'cosine similarity of {self.cosine:.4f}, and the same nearest'
                f' neighbour for {100 * self.neighbours:.1f} % of '
                f'{self.images} images')


@torch.no_grad()
def feature_gap(reference: Callable[[Tensor],
                                    Tensor], other: Callable[[Tensor], Tensor],
                batches: Sequence[Tensor]) -> FeatureGap:
    """The :class:`FeatureGap` from ``reference`` to ``other``.

    Args:
        reference, other (callable): Take images (N, 3, H, W) to features
            (N, c), as :func:`~us3l_mm.evaluation.encoder` makes them.
        batches (sequence[Tensor]): At least three images in all.
    """
    ours, theirs = (torch.cat([encode(images).double() for images in batches])
                    for encode in (reference, other))
    same = _nearest(ours) == _nearest(theirs)
    return FeatureGap(float((ours - theirs).norm() / ours.norm()),
                      float(F.cosine_similarity(ours, theirs).mean()),
                      float(same.double().mean()), len(ours))


def _nearest(features: Tensor) -> Tensor:
    """The index of the nearest neighbour of each row, (N, c) to (N,)."""
    directions = F.normalize(features)
    return (directions @ directions.T).fill_diagonal_(-2).argmax(dim=1)
