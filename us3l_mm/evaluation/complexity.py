# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from copy import deepcopy
from dataclasses import dataclass
from typing import Dict, Optional, Sequence, Tuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from us3l_mm.export.slicing import slice_network
from us3l_mm.models.layers import Subnet, slimmable_layers


@dataclass(frozen=True)
class Complexity:
    """Size of a network at one width.

    Attributes:
        params (int): Number of parameters (no statistics).
        macs (int): Multiply-accumulates of convolutions, linear layers and
            attention (both products) for one image; norms, activations and
            pooling are not counted, as is the custom of published figures.
        reference (Complexity, optional): Of what the reference computes, where
            it computes more: all features that a layer with a narrow input
            writes, also those that no layer reads.
    """

    params: int
    macs: int
    reference: Optional['Complexity'] = None


@torch.no_grad()
def count_complexity(network: nn.Module, widths: Sequence[float],
                     input_size: Tuple[int, int]) -> Dict[float, Complexity]:
    """Parameters and multiply-accumulates of ``network`` at each width.

    What is counted is the ordinary network that it is cut into, in a forward
    without any arithmetic (PyTorch's meta device).

    Args:
        network (nn.Module): Takes images (N, 3, H, W).
        widths (sequence[float]): Within the range of the network.
        input_size (tuple[int, int]): Height and width in pixels.
    """
    network = deepcopy(network).to('meta')
    width_range = getattr(network, 'width_range', (0.0, 1.0))
    widths = [Subnet.of(width).check(width_range).width for width in widths]
    counted = {width: _count(network, width, input_size) for width in widths}
    if not getattr(network, 'skip_dead', False):
        return counted
    network.set_skip_dead(False)
    return {
        width:
        Complexity(size.params, size.macs, _count(network, width, input_size))
        for width, size in counted.items()
    }


def _count(network: nn.Module, width: float,
           input_size: Tuple[int, int]) -> Complexity:
    if any(slimmable_layers(network)):
        network = slice_network(network, width, without_statistics=True)
    counter = FlopCounterMode(display=False)
    with counter:
        network.eval()(torch.empty(1, 3, *input_size, device='meta'))
    # It counts a multiplication and an addition as two.
    return Complexity(sum(p.numel() for p in network.parameters()),
                      counter.get_total_flops() // 2)
