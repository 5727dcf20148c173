# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from us3l_mm.models.layers import at_least_single
from us3l_mm.registry import MODELS
from .gather import gather_pair


@MODELS.register_module()
class BarlowTwinsLoss(nn.Module):
    """A cross-correlation of two embeddings that is the identity.

    Each feature is normalised over the batch, and C = z1^T z2 / N. The loss is
    ``scale * (sum_i (C_ii - 1)^2 + off_diagonal * sum_{i != j} C_ij^2)``.
    Both embeddings have gradients. Source: Barlow Twins, arXiv 2103.03230.

    Args:
        off_diagonal (float): The paper's lambda. Defaults to 0.0051.
        scale (float): Multiplies the loss. Defaults to 0.024, as in
            solo-learn and dense + gated SSL (arXiv 2301.09164).
        gather (bool): Whether the batch is that of all processes, so that
            several processes train what one would. Defaults to True.
    """

    def __init__(self, off_diagonal: float = 0.0051, scale: float = 0.024,
                 gather: bool = True):
        super().__init__()
        self.off_diagonal, self.scale = off_diagonal, scale
        self.gather = gather

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss, a scalar, of ``z1`` and ``z2``, both (N, d)."""
        with torch.autocast(z1.device.type, enabled=False):
            z1, z2 = gather_pair(at_least_single(z1), at_least_single(z2),
                                 self.gather)
            z1, z2 = (F.batch_norm(z, None, None, training=True)
                      for z in (z1, z2))
            c = z1.T @ z2 / len(z1)
            diagonal = c.diagonal()
            others = c.square().sum() - diagonal.square().sum()
            return self.scale * (
                (diagonal - 1).square().sum() + self.off_diagonal * others)
