# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Gates that switch channels off for each image."""
import math
from typing import NamedTuple, Optional

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn

from .precision import at_least_single
from .shared_norm import SharedBatchNorm2d
from .subnet import FULL, SlimmableLayer, Subnet, SubnetLike

GATED = Subnet(gated=True)


class Gating(NamedTuple):
    """What a gate says about a batch.

    Attributes:
        mask (Tensor): Which channels are on, 0 or 1, (N, C). In training it
            has the gradient of the soft mask.
        logits (Tensor): In training a channel is on with probability
            ``sigmoid(logits)``, (N, C).
    """

    mask: Tensor
    logits: Tensor

    @property
    def probability(self) -> Tensor:
        """The expected mask in training, (N, C)."""
        return self.logits.sigmoid()


class ChannelGate(nn.Module):
    """Says for each image which channels of a convolution are computed.

    The input is pooled to one pixel and goes through two 1x1 convolutions to a
    logit for each channel. In training a channel is on where logit plus
    logistic noise is positive; the gradient is that of ``sigmoid((logit +
    noise) / temperature)`` (a straight-through estimator). In evaluation it
    is on where the logit is at least ``threshold``, without noise. Source:
    dense + gated SSL, arXiv 2301.09164; binary Gumbel-softmax, 1611.00712.

    Args:
        in_channels (int): Channels of the input, C_in.
        channels (int): Channels that are switched, C.
        reduction (int): The hidden layer has ``in_channels // reduction``
            channels. Defaults to 4.
        temperature (float): Above 0. Defaults to 2/3.

    Attributes:
        threshold (Tensor): A scalar buffer, 0 unless :func:`set_threshold`
            has changed it.

    Shapes: (N, C_in, H, W) to a :class:`Gating` of (N, C). Logits, noise and
    mask are in single precision at least.
    """

    def __init__(self, in_channels: int, channels: int, reduction: int = 4,
                 temperature: float = 2 / 3):
        super().__init__()
        if not temperature > 0:
            raise ValueError('The temperature of a gate is above 0, got '
                             f'{temperature}; the authors have 2/3.')
        if not isinstance(reduction, int) or not 1 <= reduction <= in_channels:
            raise ValueError(
                'The reduction of a gate divides the channels of its hidden '
                f'layer and is an integer from 1 to {in_channels} here, got '
                f'{reduction!r}.')
        hidden = in_channels // reduction
        self.reduction, self.temperature = reduction, temperature
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.norm = self.build_norm(hidden)
        self.conv2 = nn.Conv2d(hidden, channels, 1, bias=False)
        self.register_buffer('threshold', torch.zeros(()))

    def build_norm(self, channels: int) -> nn.Module:
        """The norm of the hidden layer."""
        return nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Optional[Gating]:
        joint = getattr(self.norm, 'sync', False) and get_world_size() > 1
        if self.norm.training and len(x) == 1 and not joint:
            raise ValueError(
                'A gate normalises over the images of a batch, got one image. '
                'Train on two or more in each process, or with model.'
                'sync_norms=True; to run it on one, use evaluation mode.')
        x = x.mean(dim=(2, 3), keepdim=True)
        logits = self.conv2(self.norm(self.conv1(x)).relu())
        logits = at_least_single(logits.flatten(1))
        if not self.training:
            return Gating((logits >= self.threshold).to(logits.dtype), logits)
        noisy = logits + logistic_noise(logits)
        soft = (noisy / self.temperature).sigmoid()
        hard = (noisy >= 0).to(soft.dtype)
        # In brackets: their difference is exactly 0, and the mask 0 or 1.
        return Gating(hard + (soft - soft.detach()), logits)


class SwitchableGate(SlimmableLayer, ChannelGate):
    """A :class:`ChannelGate` in the gated network, nothing in the dense one.

    Arguments are those of :class:`ChannelGate`.

    Shapes: (N, C_in, H, W) to a :class:`Gating` of (N, C), or to None in the
    dense network: all channels are on.
    """

    subnets = (FULL, GATED)

    def build_norm(self, channels: int) -> nn.Module:
        return SharedBatchNorm2d(channels)

    def on_subnet(self) -> None:
        if self.subnet not in self.subnets:
            raise ValueError(f'A gate runs dense or gated, got {self.subnet}.')

    def forward(self, x: Tensor) -> Optional[Gating]:
        return super().forward(x) if self.subnet.gated else None

    @torch.no_grad()
    def plain(self, subnet: SubnetLike) -> nn.Module:
        """The gate that stays in the network of ``subnet``."""
        if not Subnet.of(subnet).gated:
            return NoGate()
        gate = ChannelGate(self.conv1.in_channels, self.conv2.out_channels,
                           self.reduction, self.temperature)
        gate.load_state_dict(
            {
                k: v.clone()
                for k, v in self.state_dict().items()}, assign=True)
        return gate.train(self.training)


class NoGate(nn.Module):
    """All channels are on. Shapes: anything to None."""

    def forward(self, x: Tensor) -> None:
        return None


def set_threshold(network: nn.Module, threshold: float) -> None:
    """Set what the logits of all gates have to reach in evaluation.

    A lower threshold leaves more channels on. It is saved with the weights.
    """
    if math.isnan(threshold):
        raise ValueError(f'A threshold is a number, got {threshold}.')
    for module in network.modules():
        if isinstance(module, ChannelGate):
            module.threshold.fill_(threshold)


def logistic_noise(like: Tensor) -> Tensor:
    """Independent draws of the logistic distribution, shaped as ``like``.

    The difference of two Gumbel variables. ``like`` is not in half precision,
    where a uniform number could be 0 and its logit infinite; here it is kept
    from 0 and 1 by the precision of single numbers.
    """
    return torch.rand_like(like).logit(eps=torch.finfo(torch.float32).eps)
