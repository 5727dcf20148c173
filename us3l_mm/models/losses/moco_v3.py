# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from us3l_mm.registry import MODELS
from .similarities import batch_cosines, check_temperature


@MODELS.register_module()
class MoCoV3Loss(nn.Module):
    """Tell each image's own target from the targets of the other images.

    With L2-normalised predictions q and targets k, the loss is
    2 T mean(-log softmax(q k^T / T)[i, i]): the rows of the process against
    the targets of all. Gradients reach q only, so averaging over processes,
    as data parallel training does, gives that of the joint batch. The factor
    2 T makes its size independent of the temperature. Source: MoCo v3,
    arXiv 2104.02057, algorithm 1; US3L, 2303.06870, on vision transformers.

    Args:
        temperature (float): T, dividing cosines. Defaults to 0.2.
        gather (bool): Whether the targets of all processes are told apart, or
            those of each process by itself. Defaults to True.
    """

    def __init__(self, temperature: float = 0.2, gather: bool = True):
        super().__init__()
        self.temperature = check_temperature(self, temperature)
        self.gather = gather

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar, of ``pred`` and ``target``, both (N, d)."""
        with torch.autocast(pred.device.type, enabled=False):
            cosines, own = batch_cosines(pred, target, self.gather)
            loss = F.cross_entropy(cosines / self.temperature, own)
            return 2 * self.temperature * loss
