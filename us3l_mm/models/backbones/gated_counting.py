# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from copy import deepcopy
from typing import Any, Dict, List, Tuple

import torch
from torch import nn

from us3l_mm.models.layers import FULL, GatedCompute, at, evaluation_mode


@torch.no_grad()
def count_gated(network: Any, size: Tuple[int, int]) -> GatedCompute:
    """What ``network`` computes for images of ``size`` (H, W) in pixels.

    Args:
        network (GatedResNet): Its tensors and those of the result are on the
            same device.
        size (tuple[int, int]): Height and width in pixels.
    """
    macs = dense_macs(network, size)
    gates: List[str] = []
    channels: List[int] = []
    gate_macs = gateable = 0
    factors: List[Tuple[int, List[int]]] = []  # of each convolution in blocks
    for name, block in network.blocks.items():
        first = len(gates) - 1
        for i in range(1, block.num_convs + 1):
            cost = macs[f'{name}.conv{i}']
            gateable += cost
            # The gates that mask what the convolution reads and puts out.
            masked = [first + j for j in (i - 1, i) if 0 < j < block.num_convs]
            factors.append((cost, masked))
            if i < block.num_convs:
                gates.append(f'{name}.gate{i}')
                channels.append(getattr(block, f'conv{i}').out_channels)
                gate_macs += sum(  # on maps of one pixel
                    conv.weight.numel()
                    for conv in getattr(block, f'gate{i}').modules()
                    if isinstance(conv, nn.Conv2d))
    number = torch.tensor(channels, dtype=torch.float64)
    linear = torch.zeros_like(number)
    pairs = torch.zeros(len(gates), len(gates), dtype=torch.float64)
    for cost, masked in factors:
        part = pairs if len(masked) == 2 else linear
        part[tuple(masked)] += cost / number[masked].prod()
    total = sum(macs.values())
    device = network.conv1.weight.device
    return GatedCompute(total, total - gateable + gate_macs, tuple(gates),
                        number.to(device), linear.to(device), pairs.to(device))


def dense_macs(network: nn.Module, size: Tuple[int, int]) -> Dict[str, int]:
    """Multiply-accumulates of each convolution in dense mode, by name.

    A copy without values (PyTorch's meta device) meets an image.
    """
    macs: Dict[str, int] = {}
    copy = deepcopy(network).to('meta')

    def count(name: str, conv: nn.Conv2d) -> None:
        conv.register_forward_hook(lambda _, inputs, output: macs.__setitem__(
            name,
            output.numel() * conv.weight[0].numel()))

    for name, module in copy.named_modules():
        if isinstance(module, nn.Conv2d) and '.gate' not in name:
            count(name, module)
    with evaluation_mode(copy), at(copy, FULL):
        copy(torch.empty(1, 3, *size, device='meta'))
    return macs
