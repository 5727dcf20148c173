# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Losses that keep a gated network within a compute budget."""
import math
from typing import Dict, Sequence, Tuple, Union

from torch import Tensor, nn

from us3l_mm.models.layers import GatedCompute, Gating, active_counts
from us3l_mm.registry import MODELS
from .gather import mean_over_processes

BOUNDS = ('sqrt', 'linear', None)
Log = Dict[str, Union[Tensor, float]]


@MODELS.register_module()
class ComputeBudget(nn.Module):
    """A target of the computation, and bounds of each layer's density.

    Two losses. With r the multiply-accumulates of the gated network as a share
    of the dense one's, averaged over the batch, ``weight * (r - target)^2``.
    With d_l the mean share of channels that gate l leaves on, and s the
    density that belongs to the target, ``bound_weight * mean_l (relu(p s -
    d_l)^2 + relu(d_l - (1 - p (1 - s)))^2)``. Here p = exp(-anneal progress)
    falls from 1, where all densities should be s, so that the bounds open.
    Source: dense + gated SSL, arXiv 2301.09164; bounds as in DGNet.

    Args:
        target (float): Of r, above what stem, shortcuts and gates cost
            (:attr:`~us3l_mm.models.layers.GatedCompute.floor`).
        weight (float): lambda. Defaults to 5.0.
        expected (bool): Whether r and d_l count the probabilities of channels
            to be on, the mean over the noise, in place of the masks of this
            step, as published. Defaults to False.
        bound (str, optional): s is 'sqrt' of the target as published, made for
            networks that switch pixels off as well; or 'linear', the density
            that has this target where channels alone are switched; None for
            no bounds. Defaults to 'sqrt'.
        bound_weight (float): gamma. Defaults to 1.0.
        anneal (float): A paper's rate per epoch, alpha, times the number of
            epochs. Defaults to 10.0: 0.02 in 500 epochs. It falls in every
            iteration, the authors' once an epoch.
    """

    def __init__(self, target: float, weight: float = 5.0,
                 expected: bool = False, bound: Union[str, None] = 'sqrt',
                 bound_weight: float = 1.0, anneal: float = 10.0):
        super().__init__()
        if not isinstance(target, (int, float)) or not 0.0 < target <= 1.0:
            raise ValueError(
                'target is the share of the multiply-accumulates that the '
                f'gated network may use, in (0, 1], got {target!r}.')
        if bound not in BOUNDS:
            raise ValueError(f'bound is one of {BOUNDS}, got {bound!r}.')
        for name, value in (('weight', weight), ('bound_weight', bound_weight),
                            ('anneal', anneal)):
            if not isinstance(value,
                              (int, float)) or not 0.0 <= value < math.inf:
                raise ValueError(f'{name} is at least 0, got {value!r}.')
        self.target, self.weight, self.expected = target, weight, expected
        self.bound, self.bound_weight = bound, bound_weight
        self.anneal = anneal

    def centre(self, compute: GatedCompute) -> float:
        """s, the density between the bounds."""
        if self.bound == 'linear':
            return compute.target_density(self.target)
        return math.sqrt(self.target)

    def forward(self, gatings: Sequence[Gating], compute: GatedCompute,
                progress: float) -> Tuple[Dict[str, Tensor], Log]:
        """The losses and the log of one view.

        Args:
            gatings (sequence[Gating]): Of the L gates, each (N, C_l).
            compute (GatedCompute): Of the network and the size of images.
            progress (float): Share of the annealing that is done, in [0, 1].

        Returns:
            tuple: ``loss_budget`` and ``loss_bound``; and the ratio, target,
            density of each gate and bounds. Averages are those of all
            processes.
        """
        counts = active_counts(gatings, self.expected)
        compute.check_target(self.target)
        ratio = mean_over_processes(compute.ratio(counts).mean().to(counts))
        density = mean_over_processes(
            (counts / compute.channels.to(counts)).mean(dim=0))
        losses = dict(loss_budget=self.weight * (ratio - self.target)**2)
        log: Log = dict(ratio=ratio.detach(), target=self.target)
        for name, value in zip(compute.names, density.detach()):
            log[f'density_{name}'] = value
        if self.bound is not None:
            low, high = density_bounds(self.centre(compute),
                                       math.exp(-self.anneal * progress))
            losses['loss_bound'] = self.bound_weight * density_penalty(
                density, low, high)
            log.update(bound_low=low, bound_high=high)
        return losses, log


def density_bounds(centre: float, p: float) -> Tuple[float, float]:
    """Lowest and highest density: ``centre`` at p = 1, 0 and 1 at p = 0."""
    return p * centre, 1 - p * (1 - centre)


def density_penalty(density: Tensor, low: float, high: float) -> Tensor:
    """How far ``density`` (L,) is out of bounds, squared; the mean, a scalar.
    """
    return ((low - density).relu().square() +
            (density - high).relu().square()).mean()
