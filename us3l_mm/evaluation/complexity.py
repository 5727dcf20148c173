# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Parameters and multiply-accumulates of networks."""
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from us3l_mm.export import slice_network
from us3l_mm.models.layers import Subnet, SubnetLike, slimmable_layers


@dataclass(frozen=True)
class Complexity:
    """The size of a network.

    Attributes:
        params (int): Number of parameters; statistics are not counted.
        macs (int): Multiply-accumulates of convolutions, linear layers and
            attention (both products) for one image. Norms, activations and
            pooling are not counted, as is usual in published figures.
        reference (Complexity, optional): The size of what the reference
            implementation computes, where it computes more: all output
            features of a layer, also those that no other layer reads.
    """

    params: int
    macs: int
    reference: Optional['Complexity'] = None


@torch.no_grad()
def count_complexity(network: nn.Module, subnets: Sequence[SubnetLike],
                     input_size: Tuple[int, int]) -> Dict[Subnet, Complexity]:
    """Parameters and multiply-accumulates of sub-networks of ``network``.

    They are counted in the ordinary network that each is sliced to, without
    any arithmetic (PyTorch's meta device).

    Args:
        network (nn.Module): Takes images (N, 3, H, W).
        subnets (sequence): The sub-networks, or their widths.
        input_size (tuple[int, int]): Height and width in pixels.
    """
    network = deepcopy(network).to('meta')
    images = image_on_meta(input_size)
    slimmable = any(slimmable_layers(network))

    def count_all() -> Dict[Subnet, Complexity]:
        return {
            subnet:
            count_size(
                slice_network(network, subnet, without_statistics=True)
                if slimmable else network, images)[0]
            for subnet in map(Subnet.of, subnets)}

    counted = count_all()
    if not getattr(network, 'skip_dead', False):
        return counted
    network.set_skip_dead(False)
    reference = count_all()
    return {
        subnet: replace(size, reference=reference[subnet])
        for subnet, size in counted.items()}


def image_on_meta(size: Tuple[int, int]) -> torch.Tensor:
    """An image (1, 3, H, W) without values, of ``size`` (H, W)."""
    return torch.empty(1, 3, *size, device='meta')


def count_size(module: nn.Module, inputs: Any) -> Tuple[Complexity, Any]:
    """The size of ``module`` in evaluation mode, and its outputs."""
    module.eval()  # that of MMDetection's backbones returns None
    with FlopCounterMode(display=False) as counter:
        outputs = module(inputs)
    # FlopCounterMode counts a multiply-accumulate as two operations.
    return Complexity(sum(p.numel() for p in module.parameters()),
                      counter.get_total_flops() // 2), outputs
