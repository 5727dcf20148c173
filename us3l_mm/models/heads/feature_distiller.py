# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Optional, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from us3l_mm.models.layers import SlimmableConv2d, at_least_single
from us3l_mm.registry import MODELS


@MODELS.register_module()
class FeatureDistiller(nn.Module):
    """Match intermediate maps of a narrow student to the teacher's.

    A 1x1 convolution with a slimmable input and a full output lifts each map
    of the student to the teacher's channels; the loss is the mean squared
    error, averaged over maps and crosswise over views. Source: US3L,
    arXiv 2303.06870 (feature distillation, optional).

    Args:
        channels (sequence[int]): Full-width channels of all backbone outputs.
        outputs (sequence[int]): Which of the outputs to match. Defaults to
            all of them.
        loss_weight (float): Multiplies the loss. Defaults to 1.0.
        divisor (int): Channels are rounded to multiples of it. Defaults to 8.
        rounding (sequence[dict], optional): Instead, how each backbone output
            narrows, see ``feature_rounding`` of the backbones. Defaults to
            None.
    """

    def __init__(self, channels: Sequence[int],
                 outputs: Optional[Sequence[int]] = None,
                 loss_weight: float = 1.0, divisor: int = 8,
                 rounding: Optional[Sequence[dict]] = None):
        super().__init__()
        self.outputs = tuple(
            range(len(channels)) if outputs is None else outputs)
        if not self.outputs or not set(self.outputs) <= set(
                range(len(channels))):
            raise ValueError(
                'feature_distill.outputs names outputs of the backbone, which '
                f'has {len(channels)} (backbone.out_indices), got '
                f'{list(self.outputs)}.')
        self.loss_weight = loss_weight
        rounding = rounding or [dict(divisor=divisor)] * len(channels)
        self.projections = nn.ModuleList(
            SlimmableConv2d(channels[i], channels[i], 1, slice_out=False, **
                            rounding[i]) for i in self.outputs)

    def loss(self, maps: Sequence[Tensor],
             targets: Sequence[Tensor]) -> Tensor:
        """The loss, a scalar, of one view's maps against another's targets.

        Args:
            maps (sequence[Tensor]): The student's, each (N, c, H, W), or
                features (N, c).
            targets (sequence[Tensor]): The teacher's, each (N, C, H, W), or
                (N, C).
        """
        losses = [
            F.mse_loss(at_least_single(project(_as_map(maps[i]))),
                       at_least_single(_as_map(targets[i].detach())))
            for i, project in zip(self.outputs, self.projections)
        ]
        return self.loss_weight * sum(losses) / len(losses)


def _as_map(x: Tensor) -> Tensor:
    """``x`` itself, or features (N, c) as a map of one pixel."""
    return x[..., None, None] if x.ndim == 2 else x
