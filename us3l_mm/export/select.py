# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The widest sub-network inside a budget."""
import math
import re
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Tuple

from torch import nn

from us3l_mm.models.layers import subnets_of

GRID_STEP = 1 / 32
AMOUNTS = {'': 1, 'k': 1e3, 'm': 1e6, 'g': 1e9, 't': 1e12}
SECONDS = {'s': 1.0, 'ms': 1e-3, 'us': 1e-6}


def parse_amount(text: str) -> float:
    """A number of operations or parameters: '1G', '250M', '5.5e6'."""
    return _parse(text, AMOUNTS, "such as '1G', '250M' or '5500000'")


def parse_seconds(text: str) -> float:
    """A duration in seconds: '10ms', '0.5s', '800us'."""
    return _parse(text, SECONDS, "with its unit, such as '10ms' or '0.5s'")


def _parse(text: str, units: Dict[str, float], example: str) -> float:
    found = re.fullmatch(r'([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)',
                         text.strip().lower())
    try:
        value = float(found.group(1)) * units[found.group(2)]
    except (AttributeError, KeyError, ValueError):
        value = 0.0
    if not 0.0 < value < math.inf:
        raise ValueError(f'A budget is a positive number {example}, got '
                         f'{text!r}.')
    return value


def selectable_widths(network: nn.Module) -> List[float]:
    """The widths to choose from, ascending: multiples of 1/32 in the range.

    A network with switchable norms has those of its list instead.
    """
    low, high = network.width_range
    subnets = subnets_of(network)
    if subnets is not None:
        return sorted(s.width for s in subnets if low <= s.width <= high)
    first = math.ceil(low / GRID_STEP - 1e-9)
    last = math.floor(high / GRID_STEP + 1e-9)
    return ([step * GRID_STEP for step in range(first, last + 1)]
            or sorted({low, high}))


@dataclass(frozen=True)
class Choice:
    """The width that was chosen, and what it and the next one cost.

    Attributes:
        width (float): The widest inside the budget.
        cost (float): Its cost.
        next_width (float, optional): The next one to choose from; None if
            ``width`` is the last.
        next_cost (float, optional): Its cost, outside the budget.
    """

    width: float
    cost: float
    next_width: Optional[float] = None
    next_cost: Optional[float] = None


def widest_within(widths: List[float], cost: Callable[[float], float],
                  budget: float, show: Callable[[float], str] = str) -> Choice:
    """The widest of ``widths`` whose cost is at most ``budget``.

    Bisects, as wider networks cost more. Where a *measured* cost does not grow
    at every step, the width found is still one that is inside while the next
    is not. Each width is asked for once.

    Args:
        widths (list[float]): Ascending.
        cost (callable): Of a width.
        budget (float): In the unit of ``cost``.
        show (callable): How to say a cost in a message.

    Raises:
        ValueError: if not even the smallest is inside.
    """
    known: Dict[float, float] = {}

    def inside(index: int) -> bool:
        width = widths[index]
        if width not in known:
            known[width] = cost(width)
        return known[width] <= budget

    if not inside(0):
        raise ValueError(
            f'No width is inside the budget of {show(budget)}: the smallest, '
            f'{widths[0]:g}, takes {show(known[widths[0]])}.')
    low, high = 0, len(widths)  # inside, outside
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if inside(middle) else (low, middle)
    if high == len(widths):
        return Choice(widths[low], known[widths[low]])
    return Choice(widths[low], known[widths[low]], widths[high],
                  known[widths[high]])


def format_amount(value: float) -> str:
    """1.052e9 as '1.052G'."""
    unit, scale = _unit(value, (('G', 1e9), ('M', 1e6), ('k', 1e3)))
    return f'{value / scale:.4g}{unit}'


def format_seconds(value: float) -> str:
    """0.0123 as '12.3ms'."""
    unit, scale = _unit(value, (('s', 1.0), ('ms', 1e-3), ('us', 1e-6)))
    return f'{value / scale:.4g}{unit}'


def _unit(value: float, units) -> Tuple[str, float]:
    for unit, scale in units:
        if value >= scale:
            return unit, scale
    return ('', 1.0) if units[-1][1] > 1 else units[-1]
