# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import torch
import torch.nn.functional as F
from mmengine.dist import get_world_size
from torch import Tensor, nn

from us3l_mm.models.layers import at_least_single
from us3l_mm.registry import MODELS
from .gather import gather_rows, gather_with_gradient


@MODELS.register_module()
class InfoNCELoss(nn.Module):
    """Tell each image's own target from everything else in the batch.

    With X = [f1; f2] (L2-normalised, 2N x d) and S = exp(X X^T / T) without
    its diagonal, the loss is mean(-log(S[i, i'] / sum_j S[i, j])) over all 2N
    rows, i' being the other embedding of the same image. Rows of both halves
    count; gradients reach f1 only, the target being detached. Source: US3L,
    arXiv 2303.06870, section 3 (the loss of SimCLR, 2002.05709).

    Args:
        temperature (float): T, dividing cosines. Defaults to 0.5.
        gather (bool): Whether N counts the images of all processes, so that
            several processes train what one would on the joint batch; if not,
            each compares its own images only. Defaults to True.
    """

    def __init__(self, temperature: float = 0.5, gather: bool = True):
        super().__init__()
        if not temperature > 0:
            raise ValueError(
                f'The temperature of InfoNCE is above 0, got {temperature}.')
        self.temperature, self.gather = temperature, gather

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar, of ``pred`` and ``target``, both (N, d)."""
        # In half precision exp(1 / T) of the sums would lose the negatives.
        with torch.autocast(pred.device.type, enabled=False):
            pred = F.normalize(at_least_single(pred), dim=1)
            target = F.normalize(at_least_single(target.detach()), dim=1)
            if self.gather and get_world_size() > 1:
                pred = gather_with_gradient(pred)
                target = gather_rows(target)
            both = torch.cat([pred, target])
            logits = both @ both.T / self.temperature  # (2N, 2N)
            logits.fill_diagonal_(float('-inf'))
            # Row i and row i + N are embeddings of the same image.
            partner = torch.arange(len(both), device=both.device).roll(
                len(pred))
            return F.cross_entropy(logits, partner)
