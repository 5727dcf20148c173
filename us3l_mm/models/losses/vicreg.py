# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from us3l_mm.models.layers import at_least_single
from us3l_mm.registry import MODELS
from .gather import gather_pair


@MODELS.register_module()
class VICRegLoss(nn.Module):
    """Equal embeddings of two views, with spread and uncorrelated features.

    The loss is ``invariance * mean((z1 - z2)^2)``, plus for either embedding z
    ``variance * mean_j relu(1 - sqrt(var_j + 1e-4))`` and ``covariance *
    sum_{i != j} cov_ij^2 / d``. Variance and covariance are unbiased; both
    embeddings have gradients. Source: VICReg, arXiv 2105.04906, with the
    variance summed over the embeddings and not averaged, as in dense + gated
    SSL, 2301.09164.

    Args:
        invariance (float): Weight of the distance; 0 leaves it out. Defaults
            to 25.0.
        variance (float): Weight of the variances. Defaults to 25.0.
        covariance (float): Weight of the covariances. Defaults to 1.0.
        gather (bool): Whether statistics are those of all processes, so that
            several processes train what one would on the joint batch. Dense +
            gated SSL has those of each process. Defaults to True.
    """

    def __init__(self, invariance: float = 25.0, variance: float = 25.0,
                 covariance: float = 1.0, gather: bool = True):
        super().__init__()
        self.invariance, self.variance = invariance, variance
        self.covariance, self.gather = covariance, gather

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss, a scalar, of ``z1`` and ``z2``, both (N, d)."""
        # In half precision sums of squares would overflow.
        with torch.autocast(z1.device.type, enabled=False):
            z1, z2 = gather_pair(at_least_single(z1), at_least_single(z2),
                                 self.gather)
            loss = self.invariance * F.mse_loss(z1, z2)
            for z in (z1, z2):
                var = z.var(dim=0)
                deviation = (var + 1e-4).sqrt()
                loss = (loss + self.variance * (1 - deviation).relu().mean() +
                        self.covariance * squared_covariances(z, var))
            return loss


def squared_covariances(z: Tensor, var: Tensor) -> Tensor:
    """Squares of the covariances of features of ``z`` (N, d), over d.

    ``var`` (d,) are the variances, which are left out of the sum.
    """
    z = z - z.mean(dim=0)
    # ||z^T z|| = ||z z^T||: the smaller one of the two products.
    product = z @ z.T if len(z) < z.shape[1] else z.T @ z
    squares = (product / (len(z) - 1)).square().sum()
    return (squares - var.square().sum()) / z.shape[1]
