# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from us3l_mm.registry import MODELS
from .similarities import check_temperature, pair_cosines


@MODELS.register_module()
class InfoNCELoss(nn.Module):
    """Tell each image's own target from everything else in the batch.

    With X = [f1; f2] (L2-normalised, 2N x d) and S = exp(X X^T / T) without
    its diagonal, the loss is mean(-log(S[i, i'] / sum_j S[i, j])) over all 2N
    rows, i' being the other embedding of the same image. Rows of both halves
    count. Source: US3L, arXiv 2303.06870, section 3 (the loss of SimCLR,
    2002.05709).

    Args:
        temperature (float): T, dividing cosines. Defaults to 0.5.
        gather (bool): Whether N counts the images of all processes, so that
            several processes train what one would on the joint batch; if not,
            each compares its own images only. Defaults to True.
        detach_target (bool): Whether gradients reach f1 only; in SimCLR they
            reach both. Defaults to True.
    """

    def __init__(self, temperature: float = 0.5, gather: bool = True,
                 detach_target: bool = True):
        super().__init__()
        self.temperature = check_temperature(self, temperature)
        self.gather, self.detach_target = gather, detach_target

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar, of ``pred`` and ``target``, both (N, d)."""
        # In half precision exp(1 / T) of the sums would lose the negatives.
        with torch.autocast(pred.device.type, enabled=False):
            if self.detach_target:
                target = target.detach()
            cosines, own = pair_cosines(pred, target, self.gather)
            return F.cross_entropy(cosines / self.temperature, own)
