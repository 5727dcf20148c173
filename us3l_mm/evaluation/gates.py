# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What a gated network computes on given images, and to a given budget."""
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import (Any, Callable, Dict, Iterable, List, Optional, Sequence,
                    Tuple)

import torch
from mmengine.dist import all_reduce
from scipy.optimize import brentq
from torch import Tensor

from us3l_mm.models.layers import (GATED, ChannelGate, GatedCompute, Gating,
                                   active_counts, at, evaluation_mode,
                                   set_threshold)
from .calibration import calibrate

MAX_GUESSES, MAX_DOUBLINGS = 40, 20


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


class GateTally:
    """Adds up what gates leave on, batch by batch, without reading it.

    Args:
        num_images (int, optional): Images of this process that count, from
            the first on; a sampler may repeat some to fill up the last batch.
            Defaults to None for all.
    """

    def __init__(self, num_images: Optional[int] = None):
        self.left = num_images
        self.compute: Optional[GatedCompute] = None
        self._sums: Any = 0  # of images, of ratios, and of masks

    def add(self, gatings: Sequence[Gating], compute: GatedCompute) -> None:
        """Count a batch.

        Args:
            gatings (sequence[Gating]): Of the L gates, each (N, C_l), in
                evaluation mode.
            compute (GatedCompute): Of the network at the size of the images.
        """
        counts = active_counts(gatings)[:self.left]
        if self.left is not None:
            self.left -= len(counts)
        ratios = compute.ratio(counts)
        masks = torch.cat([gating.mask for gating in gatings], dim=1)
        self.compute = compute
        self._sums = self._sums + torch.cat([
            torch.ones_like(ratios).sum(0, keepdim=True),
            ratios.sum(0, keepdim=True), masks[:len(counts)].double().sum(0)])

    def use(self) -> GateUse:
        """The averages over the images of all processes.

        Raises:
            ValueError: If there were no images.
        """
        if self.compute is None:
            raise ValueError(
                'There are no images to measure gates on. Batches are read '
                'more than once: give a list or a loader.')
        all_reduce(self._sums)
        ratio, on = (self._sums[1] / self._sums[0],
                     self._sums[2:] / self._sums[0])
        shares = on.float().cpu().split([
            int(c) for c in self.compute.channels])
        return GateUse(float(ratio), dict(zip(self.compute.names, shares)))


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
    check_gates(network)
    tally = GateTally()
    with evaluation_mode(network), at(network, GATED):
        for images in batches:
            tally.add(
                network.forward_gated(images)[1],
                network.compute(tuple(images.shape[-2:])))
    return tally.use()


def check_gates(network: Any) -> None:
    """Raise ValueError unless ``network`` has gates."""
    if not hasattr(network, 'forward_gated'):
        raise ValueError(
            f'{type(network).__name__} has no gates. Give a gated '
            'backbone, such as us3l_mm.GatedResNet.')


def threshold_of(network: Any) -> float:
    """The threshold of the gates of ``network``."""
    return float(
        next(gate.threshold for gate in network.modules()
             if isinstance(gate, ChannelGate)))


@torch.no_grad()
def calibrate_threshold(network: Any, batches: Iterable[Tensor], target: float,
                        tolerance: float = 0.01,
                        statistics: bool = True) -> float:
    """Set the one threshold of all gates that meets a compute budget.

    Masks in training are drawn, those in evaluation are not, so a network
    trained for a budget exceeds it; and any other budget can be met by the
    same weights. What enters the norms depends on the masks, so for each
    threshold the statistics of the norms that belong to the gated mode alone
    are measured first (:func:`calibrate`), and then the compute, with a pass
    over the images for either. The threshold is found by Brent's method.
    Threshold and statistics stay in the network and in its state dict; those
    of the dense mode do not change.

    Args:
        network (GatedResNet): The trained network.
        batches (iterable[Tensor]): As for :func:`measure_gates`, images as in
            evaluation, in mixed order. They are read about twenty times.
        target (float): Multiply-accumulates as a share of the dense
            network's.
        tolerance (float): By which share of ``target`` the result may differ
            from it. Defaults to 0.01.
        statistics (bool): Whether to measure the statistics. A network with
            norms common to both modes keeps those of training. Defaults to
            True.

    Returns:
        float: The threshold.

    Raises:
        ValueError: If no masks meet the target, or no threshold does; the
            network is not changed then.
    """
    if not 0.0 < tolerance < 1.0:
        raise ValueError(f'tolerance is in (0, 1), got {tolerance}.')
    check_gates(network)
    first = next(iter(batches), None)
    if first is not None:
        network.compute(tuple(first.shape[-2:])).check_target(target)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    ratios: List[float] = []

    @lru_cache  # Brent's method asks for both ends again
    def excess(threshold: float) -> float:
        """By how much the ratio exceeds the target; 0 within tolerance."""
        set_threshold(network, threshold)
        if statistics:
            calibrate(network, batches, [GATED], private=True)
        ratios.append(measure_gates(network, batches).ratio)
        difference = ratios[-1] - target
        return 0.0 if abs(difference) <= tolerance * target else difference

    try:
        threshold = _root(excess)
        if excess(threshold) == 0:  # the last one that was set
            return threshold
        nearest = min(ratios, key=lambda ratio: abs(ratio - target))
        raise ValueError(
            f'No threshold meets target={target:g} within {tolerance:.0%}: '
            f'the nearest ratio is {nearest:.4f}. Many logits are equal; use '
            'more images, a larger tolerance, or another target.')
    except ValueError:
        network.load_state_dict(before)
        raise


def _root(excess: Callable[[float], float]) -> float:
    """Where ``excess``, which falls, is 0; or where its sign changes."""
    start = excess(0.0)
    near, far = 0.0, math.copysign(1.0, start)
    while excess(far) * start > 0 and abs(far) < 2**MAX_DOUBLINGS:
        near, far = far, 2 * far
    if excess(near) * excess(far) >= 0:
        return near if excess(near) == 0 else far
    return brentq(excess, near, far, maxiter=MAX_GUESSES, disp=False)
