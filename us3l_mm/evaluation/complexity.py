# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from copy import deepcopy
from dataclasses import dataclass
from typing import Dict, Iterator, Sequence, Tuple

import torch
from torch import nn

from us3l_mm.models.layers import SlimmableLayer, check_width
from .calibration import batch_statistics


@dataclass(frozen=True)
class Complexity:
    """Size of a network at one width.

    Attributes:
        params (int): Number of parameters (no statistics).
        macs (int): Multiply-accumulates of convolutions and linear layers for
            one image; norms, activations and pooling are not counted, as is
            the custom of published figures.
    """

    params: int
    macs: int


@torch.no_grad()
def count_complexity(network: nn.Module, widths: Sequence[float],
                     input_size: Tuple[int, int]) -> Dict[float, Complexity]:
    """Parameters and multiply-accumulates of ``network`` at each width.

    Sizes of maps do not depend on the width, so one forward without any
    arithmetic (PyTorch's meta device) serves all widths. Each slimmable layer
    is then counted as the plain layer it is at a width, every other parameter
    as it is.

    Args:
        network (nn.Module): Takes images (N, 3, H, W).
        widths (sequence[float]): Within the range of the network.
        input_size (tuple[int, int]): Height and width in pixels.
    """
    network = deepcopy(network).to('meta')
    width_range = getattr(network, 'width_range', (0.0, 1.0))
    widths = [check_width(width, width_range) for width in widths]
    positions = _output_positions(network, input_size)
    return {width: _count(network, width, positions) for width in widths}


def _count(network: nn.Module, width: float,
           positions: Dict[nn.Module, int]) -> Complexity:
    params = macs = 0
    for module in _outside_slimmable(network):
        layer = (module.plain(width) if isinstance(module, SlimmableLayer) else
                 module)
        params += sum(p.numel() for p in layer.parameters(recurse=False))
        if module in positions:
            macs += layer.weight.numel() * positions[module]
    return Complexity(params, macs)


def _output_positions(network: nn.Module,
                      input_size: Tuple[int, int]) -> Dict[nn.Module, int]:
    """How often convolutions and linear layers are applied to one image."""
    positions = {}

    def count(layer, args, output):
        channels = output.shape[1 if isinstance(layer, nn.Conv2d) else -1]
        applied = output.numel() // channels // 2
        positions[layer] = positions.get(layer, 0) + applied

    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    with batch_statistics(network):
        # Two images, as there are no statistics of one.
        network(torch.empty(2, 3, *input_size, device='meta'))
    return positions


def _outside_slimmable(module: nn.Module) -> Iterator[nn.Module]:
    """All modules but those inside of a slimmable layer."""
    yield module
    if not isinstance(module, SlimmableLayer):
        for child in module.children():
            yield from _outside_slimmable(child)
