# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Which sub-networks an iteration trains: pure functions, equal on all ranks.
"""
import math
import random
from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple, Union

from us3l_mm.models.layers import Subnet, SubnetLike, subnet_list
from .reweighting import pass_weights


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a training step.

    Attributes:
        subnet (Subnet): The sub-network to run.
        name (str): The name in the log, which stays while a sampled width
            changes: 'max', 'rand' (or 'rand0', 'rand1', ...), 'min'; or the
            name of the sub-network.
        role (str): 'base' for the first pass, of the widest sub-network, else
            'distil'. Defaults to 'base'.
        weight (float): Multiplies the losses of the pass. Defaults to 1.0.
    """

    subnet: Subnet
    name: str
    role: str = 'base'
    weight: float = 1.0


@dataclass(frozen=True)
class Plan:
    """What one training step does.

    Attributes:
        passes (tuple[Pass, ...]): The passes in order, the base pass first.
        stage (int): Stage of dynamic sampling, from 0. Defaults to 0.
        progress (float): Share of training that is done, in [0, 1). Defaults
            to 0.0.
        diagnose (bool): Whether the log tells more about gradients, at some
            expense. Defaults to False.
    """

    passes: Tuple[Pass, ...]
    stage: int = 0
    progress: float = 0.0
    diagnose: bool = False

    @classmethod
    def sampled(cls, widths: Sequence[SubnetLike], stage: int = 0,
                progress: float = 0.0) -> 'Plan':
        """The plan for sampled widths, whose passes are named by their place.
        """
        wide, *narrow = sorted(map(Subnet.of, widths), key=lambda s: -s.width)
        names = [f'rand{i}' for i in range(len(narrow) - 1)] + ['min']
        if len(narrow) == 2:
            names[0] = 'rand'
        return cls(
            (Pass(wide, 'max'), *(Pass(subnet, name, 'distil')
                                  for subnet, name in zip(narrow, names))),
            stage, progress)

    @classmethod
    def fixed(cls, subnets: Sequence[SubnetLike], progress: float = 0.0,
              weights: Union[str, Sequence[float]] = 'equal',
              stage: int = 0) -> 'Plan':
        """The plan for a list of sub-networks, whose passes are named by them.

        ``weights`` are those of :func:`pass_weights`.
        """
        ordered = subnet_list(subnets)
        return cls(
            tuple(
                Pass(subnet, str(subnet), 'distil' if i else 'base', weight)
                for i, (subnet, weight) in enumerate(
                    zip(ordered, pass_weights(ordered, weights)))), stage,
            progress)

    @property
    def base(self) -> Pass:
        """The base pass."""
        return self.passes[0]


@dataclass(frozen=True)
class Sandwich:
    """The sandwich rule with dynamic sampling.

    An iteration trains the widest network, random ones and the narrowest. The
    widest trains alone in the first of ``num_stages`` equal stages of
    training; each later stage lowers the narrowest width by the same step, to
    the end of the range. Sources: US-Nets, arXiv 1903.05134 (sandwich rule);
    US3L, 2303.06870 (dynamic sampling).

    Args:
        width_range (tuple[float, float]): Lowest and highest width.
        num_samples (int): Number of widths per iteration, at least 2.
        num_stages (int): 1 samples the whole range from the start.
        grid (float, optional): Random widths are multiples of it; None draws
            them from the whole interval.
        seed (int): Seed of the random widths.
    """

    width_range: Tuple[float, float]
    num_samples: int = 3
    num_stages: int = 4
    grid: Optional[float] = 1 / 32
    seed: int = 0

    def __call__(self, iteration: int, max_iterations: int) -> Plan:
        """The plan of one iteration."""
        stage = stage_of(iteration, max_iterations, self.num_stages)
        lowest = lowest_width(stage, self.width_range, self.num_stages)
        widths = sandwich(lowest, self.width_range[1], self.num_samples,
                          self.seed, iteration, self.grid)
        return Plan.sampled(widths, stage, iteration / max(max_iterations, 1))

    def count_widths(self) -> Optional[int]:
        """How many widths training may meet; None for any number."""
        if self.num_samples == 2:
            return self.num_stages + 1
        if self.grid is None:
            return None
        low, high = self.width_range
        # The ends of the stages may lie off the grid.
        return int((high - low) / self.grid + 1e-6) + self.num_stages + 1


def stage_of(iteration: int, max_iterations: int, num_stages: int = 4) -> int:
    """The stage, 0 to ``num_stages - 1``, that an iteration belongs to.

    Stages are equal parts of training, counted in iterations, so a number of
    epochs that ``num_stages`` does not divide makes no additional stage.
    Source: US3L, arXiv 2303.06870, dynamic sampling.
    """
    stage = iteration * num_stages // max(max_iterations, 1)
    return min(stage, num_stages - 1)


def lowest_width(stage: int, width_range: Tuple[float, float],
                 num_stages: int = 4) -> float:
    """The smallest width of a stage, falling evenly from the full width.

    With (0.25, 1.0) and four stages: 1.0, 0.75, 0.5, 0.25. A single stage has
    the whole range.
    """
    low, high = width_range
    if stage == num_stages - 1:
        return low  # exactly: rounding below it would be refused in training
    return high - (high - low) * stage / (num_stages - 1)


def sandwich(lowest: float, highest: float, num_samples: int, seed: int,
             iteration: int, grid: Optional[float] = None) -> List[float]:
    """Widths of one iteration, widest first: highest, random ones, lowest.

    A function of its arguments alone and not of a global random state, so
    that all processes and a resumed run draw the same. Random widths lie
    between the two others, on multiples of ``grid``; anywhere there if that
    is None or has no multiple between them.
    """
    if lowest == highest:
        return [highest]
    # String seeding hashes with SHA-512: the same draw on every platform.
    draw = random.Random(f'{seed}/{iteration}')
    middle = [
        _between(lowest, highest, draw, grid) for _ in range(num_samples - 2)]
    return [highest, *sorted(middle, reverse=True), lowest]


def _between(lowest: float, highest: float, draw: random.Random,
             grid: Optional[float]) -> float:
    if grid is not None:
        # Not the ends: they are trained anyway, and 0.7 / 0.1 is 6.99...
        first = math.floor(lowest / grid + 1e-6) + 1
        last = math.ceil(highest / grid - 1e-6) - 1
        if first <= last:
            return draw.randint(first, last) * grid
    return draw.uniform(lowest, highest)
