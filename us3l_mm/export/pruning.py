# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""From a gated network to a plain, smaller one without gates."""
from bisect import bisect_right
from typing import Any, Dict, Tuple

import torch
from torch import Tensor, nn

from us3l_mm.models.backbones import (GatedResNet_CIFAR, PrunedResNet,
                                      PrunedResNet_CIFAR)
from us3l_mm.models.backbones.slicing import slice_network
from us3l_mm.models.layers import GATED, GatedCompute
from .families import family_of

Channels = Dict[str, Tensor]


def choose_channels(shares: Channels, compute: GatedCompute,
                    ratio: float) -> Tuple[Channels, float]:
    """The channels that are on most often, within a compute budget.

    Args:
        shares (dict[str, Tensor]): For each gate by name, the share of images
            for which each channel is on, (C,).
        compute (GatedCompute): What the network computes.
        ratio (float): The most that the pruned network may compute, as a
            share of the dense one. Channels that are never on are not kept,
            though it may allow them.

    Returns:
        tuple: For each gate the channels to keep, bool (C,), and the least
        share of images for which one of them is on.
    """
    together = torch.cat([shares[name] for name in compute.names])
    order = together.argsort(descending=True, stable=True)
    sizes = [len(shares[name]) for name in compute.names]

    def first(count: int) -> Channels:
        chosen = torch.zeros(len(order), dtype=torch.bool)
        chosen[order[:count]] = True
        return dict(zip(compute.names, chosen.split(sizes)))

    used = int((together > 0).sum())
    count = bisect_right(
        range(used + 1), ratio, lo=1,
        key=lambda count: pruned_ratio(compute, first(count))) - 1
    return first(count), float(together[order[count - 1]]) if count else 1.0


def pruned_ratio(compute: GatedCompute, kept: Channels) -> float:
    """What :func:`prune` leaves to compute, as a share of the dense network.
    """
    counts = torch.tensor([[
        max(1, int(kept[name].sum())) for name in compute.names]])
    everything = compute.channels[None].cpu()
    gates = compute.macs(everything) - compute.total
    return float((compute.macs(counts) - gates) / compute.total)


@torch.no_grad()
def prune(network: Any, kept: Channels) -> nn.Module:
    """A plain network of the channels that are kept, without gates.

    It computes what the gated ``network`` does if its gates leave on just
    these channels, rounding aside. A gate without channels keeps one, whose
    weights behind it are 0.

    Args:
        network (GatedResNet): The network, which is not changed.
        kept (dict[str, Tensor]): For each gate by name, which channels stay,
            bool (C,).

    Returns:
        PrunedResNet: In evaluation mode, with the weights and statistics of
        gated mode.
    """
    weights = slice_network(network, GATED).state_dict()
    for name, block in network.blocks.items():
        _cut(weights, name, block, kept)
    inner = [[
        max(1, int(kept[f'{stage}.{i}.gate{j}'].sum()))
        for i, block in enumerate(getattr(network, stage))
        for j in range(1, block.num_convs)] for stage in network.res_layers]
    cls = (PrunedResNet_CIFAR
           if isinstance(network, GatedResNet_CIFAR) else PrunedResNet)
    pruned = cls(
        mid_channels=inner, **{
            **family_of(network).arguments(network), 'out_indices':
            network.out_indices}).to(network.conv1.weight)
    pruned.load_state_dict({
        key: value for key, value in weights.items() if '.gate' not in key})
    return pruned.eval()


def _cut(weights: Dict[str, Tensor], name: str, block: Any,
         kept: Channels) -> None:
    """Leave the kept channels of a block in ``weights``, in place."""
    inputs: Any = None
    alive: Any = None
    for i in range(1, block.num_convs + 1):
        key = f'{name}.conv{i}.weight'
        if inputs is not None:
            # A channel that stays although it is off has no effect.
            weights[key] = weights[key][:, inputs] * alive[:, None, None]
        if i == block.num_convs:
            return
        on = kept[f'{name}.gate{i}'].to(weights[key].device)
        inputs = on.nonzero().flatten() if on.any() else torch.zeros_like(
            on[:1], dtype=torch.int64)
        alive = on[inputs].to(weights[key])
        norm = f'{name}.{getattr(block, f"norm{i}_name")}.'
        for own in [
                key,
                *(k
                  for k in weights if k.startswith(norm) and weights[k].ndim)]:
            weights[own] = weights[own][inputs]
