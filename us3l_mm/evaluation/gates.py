# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What a gated network computes on given images, and to a given budget."""
import math
from dataclasses import dataclass
from typing import Any, Dict, Iterable, Tuple

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from us3l_mm.models.layers import (GATED, ChannelGate, active_counts, at,
                                   evaluation_mode, set_threshold)

MAX_PASSES = 40


@dataclass(frozen=True)
class GateUse:
    """Which channels a gated network leaves on, over a set of images.

    Attributes:
        ratio (float): Multiply-accumulates as a share of the dense network's,
            gates included.
        shares (dict[str, Tensor]): For each gate by name, the share of images
            for which each channel is on, (C,).
    """

    ratio: float
    shares: Dict[str, Tensor]

    @property
    def density(self) -> Dict[str, float]:
        """For each gate, the mean share of channels that are on."""
        return {name: float(on.mean()) for name, on in self.shares.items()}

    @property
    def kinds(self) -> Dict[str, Tuple[int, int, int]]:
        """For each gate, channels always off, always on, data-dependent."""
        kinds = {}
        for name, on in self.shares.items():
            off, always = int((on == 0).sum()), int((on == 1).sum())
            kinds[name] = off, always, len(on) - off - always
        return kinds


@torch.no_grad()
def measure_gates(network: Any, batches: Iterable[Tensor]) -> GateUse:
    """The :class:`GateUse` of ``network`` in evaluation mode.

    Args:
        network (GatedResNet): Its mode and its sub-network are restored.
        batches (iterable[Tensor]): Preprocessed images (N, 3, H, W) on the
            device of the network. Those of all processes count.

    Raises:
        ValueError: If there are no images, or the network has no gates.
    """
    if not hasattr(network, 'forward_gated'):
        raise ValueError(f'{type(network).__name__} has no gates. Give the '
                         'backbone, a us3l_mm.GatedResNet.')
    sums: Any = 0  # of images, of ratios, and of masks
    with evaluation_mode(network), at(network, GATED):
        for images in batches:
            _, gatings = network.forward_gated(images)
            compute = network.compute(tuple(images.shape[-2:]))
            ratios = compute.ratio(active_counts(gatings))
            masks = torch.cat([gating.mask for gating in gatings], dim=1)
            sums = sums + torch.cat([
                torch.ones_like(ratios).sum(0, keepdim=True),
                ratios.sum(0, keepdim=True),
                masks.double().sum(0)])
    if isinstance(sums, int):
        raise ValueError('There are no images to measure gates on. Batches '
                         'are read more than once: give a list or a loader.')
    all_reduce(sums)
    ratio, on = sums[1] / sums[0], sums[2:] / sums[0]
    shares = on.float().split([int(c) for c in compute.channels])
    return GateUse(float(ratio), dict(zip(compute.names, shares)))


def calibrate_threshold(network: Any, batches: Iterable[Tensor], target: float,
                        tolerance: float = 0.01) -> float:
    """Set the one threshold of all gates that meets a compute budget.

    Masks in training are drawn, those in evaluation are not, so a network
    trained for a budget exceeds it; and any other budget can be met by the
    same weights. The threshold is found by bisection, with a pass over the
    images for each guess, and stays in the network and in its state dict.

    Args:
        network (GatedResNet): The trained network.
        batches (iterable[Tensor]): As for :func:`measure_gates`, images as in
            evaluation. They are read about ten times.
        target (float): Multiply-accumulates as a share of the dense
            network's.
        tolerance (float): By which share of ``target`` the result may differ
            from it. Defaults to 0.01.

    Returns:
        float: The threshold.

    Raises:
        ValueError: If no masks meet the target, or no threshold does; the
            network is not changed then.
    """
    if not 0.0 < tolerance < 1.0:
        raise ValueError(f'tolerance is in (0, 1), got {tolerance}.')
    gates = [m for m in network.modules() if isinstance(m, ChannelGate)]
    before = [gate.threshold.clone() for gate in gates]
    low, high, guess, nearest = -math.inf, math.inf, 0.0, math.inf
    first = next(iter(batches), None)
    if first is not None:
        network.compute(tuple(first.shape[-2:])).check_target(target)
    for _ in range(MAX_PASSES):
        set_threshold(network, guess)
        ratio = measure_gates(network, batches).ratio
        if abs(ratio - target) <= tolerance * target:
            return guess
        nearest = min(nearest, ratio, key=lambda r: abs(r - target))
        # A higher threshold leaves fewer channels on.
        low, high = (guess, high) if ratio > target else (low, guess)
        guess = _between(low, high)
    for gate, threshold in zip(gates, before):
        gate.threshold.copy_(threshold)
    raise ValueError(
        f'No threshold meets target={target:g} within {tolerance:.0%}: the '
        f'nearest ratio is {nearest:.4f}. Many logits are equal; use more '
        'images, a larger tolerance, or another target.')


def _between(low: float, high: float) -> float:
    """The middle, or a step that doubles where there is no other end."""
    if math.isinf(high):
        return low + max(1.0, abs(low))
    if math.isinf(low):
        return high - max(1.0, abs(high))
    return (low + high) / 2
