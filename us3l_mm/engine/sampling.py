# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Which widths an iteration trains: pure functions, equal on every rank."""
import math
import random
from typing import List, Optional, Tuple


def stage_of(iteration: int, max_iterations: int, num_stages: int = 4) -> int:
    """The stage, 0 to ``num_stages - 1``, that an iteration belongs to.

    Stages are equal parts of training, counted in iterations: an epoch count
    that ``num_stages`` does not divide makes no stage too many. Source: US3L,
    arXiv 2303.06870, dynamic sampling.
    """
    stage = iteration * num_stages // max(max_iterations, 1)
    return min(stage, num_stages - 1)


def lowest_width(stage: int, width_range: Tuple[float, float],
                 num_stages: int = 4) -> float:
    """The smallest width of a stage: the full width first, then down evenly.

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

    A function of its arguments alone, not of a global random state: every
    process and a resumed run draw the same. Random widths lie between the two
    others, on multiples of ``grid``; anywhere there if that is None, or has no
    multiple between them.
    """
    if lowest == highest:
        return [highest]
    # String seeding hashes with SHA-512: the same draw on every platform.
    draw = random.Random(f'{seed}/{iteration}')
    middle = [
        _between(lowest, highest, draw, grid) for _ in range(num_samples - 2)
    ]
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
