# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What a gated network computes, as a function of the channels that are on."""
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Sequence, Tuple

import torch
from torch import Tensor

from .gate import Gating


@dataclass(frozen=True)
class GatedCompute:
    """Multiply-accumulates of a gated network for one image.

    With n_l channels on in gate l they are ``fixed + sum_l linear_l n_l +
    sum_lm pairs_lm n_l n_m``: a convolution whose input or output is gated is
    linear in n, one between two gates is a product. Source: dense + gated SSL,
    arXiv 2301.09164 (which counts multiply-accumulates as FLOPs).

    Attributes:
        total (int): What the dense network computes, without gates.
        fixed (int): What the gated network computes however few channels are
            on: stem, shortcuts and gates.
        names (tuple[str, ...]): The names of the L gates.
        channels (Tensor): The channels of each gate, (L,).
        linear (Tensor): (L,).
        pairs (Tensor): (L, L).
    """

    total: int
    fixed: int
    names: Tuple[str, ...]
    channels: Tensor
    linear: Tensor
    pairs: Tensor

    def macs(self, counts: Tensor) -> Tensor:
        """Multiply-accumulates (N,) with ``counts`` (N, L) channels on.

        Both are in double precision, in which they are exact.
        """
        counts = counts.double()
        return (self.fixed + counts @ self.linear +
                (counts @ self.pairs * counts).sum(dim=1))

    def ratio(self, counts: Tensor) -> Tensor:
        """:meth:`macs` as a share of ``total``, (N,)."""
        return self.macs(counts) / self.total

    @property
    def floor(self) -> float:
        """The least :meth:`ratio`."""
        return self.fixed / self.total

    def check_target(self, target: float) -> float:
        """``target``, or a ValueError if no mask has this ratio."""
        if not self.floor < target <= 1.0:
            raise ValueError(
                f'target={target:g} is not a compute budget of this network: '
                'stem, shortcuts and gates, which are never switched off, '
                f'cost {self.floor:.4f} of the dense network at this size of '
                f'images. Use a target between {self.floor:.4f} and 1 '
                '(model.budget.target in training).')
        return target

    @cached_property
    def _gateable(self) -> Tuple[float, float]:
        """What all channels cost, linear and square; read once."""
        return (float(self.linear @ self.channels),
                float(self.channels @ self.pairs @ self.channels))

    def target_density(self, target: float) -> float:
        """The share of channels on, equal in all gates, of ratio ``target``.

        Raises:
            ValueError: If ``target`` is below :attr:`floor` or above 1.
        """
        gateable = self.check_target(target) * self.total - self.fixed
        linear, square = self._gateable
        # The positive root, in the form that a missing square allows too.
        return 2 * gateable / (linear +
                               math.sqrt(linear**2 + 4 * square * gateable))


def active_counts(gatings: Sequence[Gating], expected: bool = False) -> Tensor:
    """How many channels are on, (N, L).

    Args:
        gatings (sequence[Gating]): Of the L gates.
        expected (bool): Whether to count probabilities, that is the mean over
            the noise, in place of the mask. Defaults to False.
    """
    return torch.stack([
        (gating.probability if expected else gating.mask).sum(dim=1)
        for gating in gatings], dim=1)
