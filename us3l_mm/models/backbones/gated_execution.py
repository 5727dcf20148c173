# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Running a gated network without the channels that are off."""
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from us3l_mm.models.layers import GATED
from .slicing import slice_network


class ActiveChannels(nn.Module):
    """A gated network that computes only the channels that are on.

    ``GatedResNet`` multiplies all channels by their masks. This module reads
    the masks of an image before it computes a convolution, gathers the
    weights of the channels that are on, and convolves with these alone. The
    result is the same, rounding aside. In a batch, a channel is computed if
    it is on for any of the images, and masked for the others, so that time is
    saved on batches of one, or of images whose masks agree.

    It is for inference: it has a copy of the weights as they are now, runs in
    evaluation mode without gradients, and refuses to train. On a GPU it waits
    for the masks of every block.

    Args:
        network (GatedResNet): The network, which is not changed.

    Shapes: images (N, 3, H, W) to the maps of the stages ``out_indices``, as
    the gated network returns them.

    Raises:
        ValueError: If the network has no gates.

    Example:
        >>> from us3l_mm.models import ActiveChannels, GatedResNet
        >>> run = ActiveChannels(GatedResNet(18))
        >>> run(torch.rand(1, 3, 96, 96))[-1].shape
        torch.Size([1, 512, 3, 3])
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        if not hasattr(network, 'forward_gated'):
            raise ValueError(f'{type(network).__name__} has no gates. Give a '
                             'us3l_mm.GatedResNet.')
        self.network = slice_network(network, GATED)
        self.eval()

    def train(self, mode: bool = True) -> nn.Module:
        if mode:
            raise ValueError(
                'ActiveChannels runs a copy of the network in evaluation mode '
                'only. Train the network itself, and make another one.')
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        network, maps = self.network, []
        x = network.maxpool(network.relu(network.norm1(network.conv1(x))))
        for i, stage in enumerate(network.res_layers):
            for block in getattr(network, stage):
                x = _run_block(block, x)
            if i in network.out_indices:
                maps.append(x)
        return tuple(maps)


def _run_block(block: nn.Module, x: Tensor) -> Tensor:
    """The output of a GatedBlock, (N, C_in, H, W) to (N, C_out, H', W')."""
    y = x
    inputs: Optional[Tensor] = None
    for i in range(1, block.num_convs):
        mask = getattr(block, f'gate{i}')(x).mask
        # A convolution has at least one channel, if need be a masked one.
        on = mask.any(dim=0).nonzero().flatten()
        outputs = on if len(on) else torch.zeros_like(mask[0, :1]).long()
        y = _convolve(block, i, y, inputs, outputs).relu_()
        mask = mask.index_select(1, outputs)
        if not mask.all():
            y *= mask[..., None, None].to(y.dtype)
        inputs = outputs
    y = _convolve(block, block.num_convs, y, inputs, None)
    y += x if block.downsample is None else block.downsample(x)
    return y.relu_()


def _convolve(block: nn.Module, i: int, x: Tensor, inputs: Optional[Tensor],
              outputs: Optional[Tensor]) -> Tensor:
    """Convolution and norm number ``i``, from and to some channels.

    Args:
        block (nn.Module): The block.
        i (int): The number, from 1.
        x (Tensor): The channels ``inputs``, (N, n, H, W).
        inputs, outputs (Tensor, optional): The indices (n,) of channels; None
            for all.
    """
    conv, norm = getattr(block, f'conv{i}'), getattr(block, f'norm{i}')
    weight = conv.weight
    statistics = [norm.running_mean, norm.running_var, norm.weight, norm.bias]
    if outputs is not None and len(outputs) < conv.out_channels:
        # Several times as fast as weight[outputs].
        weight = weight.index_select(0, outputs)
        statistics = [s.index_select(0, outputs) for s in statistics]
    if inputs is not None and len(inputs) < conv.in_channels:
        weight = weight.index_select(1, inputs)
    y = F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation)
    return F.batch_norm(y, *statistics, False, 0.0, norm.eps)
