# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The widest sub-network within a budget."""
import math
import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import Callable, Dict, List, Optional

from torch import nn

from us3l_mm.evaluation.complexity import count_complexity
from us3l_mm.evaluation.latency import width_latency
from us3l_mm.models.layers import Subnet, subnets_of

STEPS = 32  # multiples of 1 / 32
# From large to small
AMOUNTS = {'T': 1e12, 'G': 1e9, 'M': 1e6, 'k': 1e3, '': 1}
SECONDS = {'s': 1.0, 'ms': 1e-3, 'us': 1e-6}
COSTS = ('flops', 'params', 'latency')


@dataclass(frozen=True)
class Choice:
    """The sub-network that was chosen, and what it and the next one cost.

    Attributes:
        subnet (Subnet): The widest sub-network within the budget.
        cost (float): Its cost.
        next_subnet (Subnet, optional): The next wider sub-network; None if
            ``subnet`` is the widest of all.
        next_cost (float, optional): The cost of the next wider one, which
            exceeds the budget.
    """

    subnet: Subnet
    cost: float
    next_subnet: Optional[Subnet] = None
    next_cost: Optional[float] = None


@dataclass(frozen=True)
class Budget:
    """The highest cost that a sub-network may have.

    Attributes:
        kind (str): 'flops' (multiply-accumulates of one image, as MMEngine
            and fvcore count them), 'params', or 'latency' (of one image, in
            seconds, measured on this machine).
        limit (float): The highest cost.

    Raises:
        ValueError: If the kind is another one, or the limit is no positive
            number.
    """

    kind: str
    limit: float

    def __post_init__(self):
        _check_kind(self.kind)
        if (isinstance(self.limit, bool) or not isinstance(self.limit, Real)
                or not 0 < self.limit < math.inf):
            raise ValueError(
                f'The limit of a budget is a positive number, got '
                f"{self.limit!r}. Texts are for Budget.parse({self.kind!r}, "
                "'1G').")

    @classmethod
    def parse(cls, kind: str, text: str) -> 'Budget':
        """A budget from a text such as '1G' or '10ms'."""
        _check_kind(kind)
        parse = parse_seconds if kind == 'latency' else parse_amount
        return cls(kind, parse(text))

    def show(self, cost: float) -> str:
        """A cost of this kind as a text."""
        if self.kind == 'latency':
            return format_seconds(cost)
        return format_amount(cost) + {
            'flops': ' MACs',
            'params': ' parameters'}[self.kind]

    def choose(self, network: nn.Module, input_size: int) -> Choice:
        """The widest sub-network of ``network`` within the budget.

        Raises:
            ValueError: If there is none.
        """
        check_count('input_size', input_size)
        size = (input_size, input_size)

        def cost(subnet: Subnet) -> float:
            if self.kind == 'latency':
                return width_latency(network, subnet, size) / 1000
            counted = count_complexity(network, [subnet], size)[subnet]
            return counted.macs if self.kind == 'flops' else counted.params

        return widest_within(selectable(network), cost, self.limit, self.show)


def _check_kind(kind: str) -> None:
    if kind not in COSTS:
        raise ValueError(f'A budget is one of {COSTS}, got {kind!r}.')


def check_count(name: str, value: int) -> None:
    """Raise ValueError unless ``value`` is a whole number of at least 1."""
    if (isinstance(value, bool) or not isinstance(value, Integral)
            or value < 1):
        raise ValueError(f'{name} is a whole number of at least 1, got '
                         f'{value!r}.')


def selectable(network: nn.Module) -> List[Subnet]:
    """The sub-networks to choose from, from narrow to wide.

    They are those of the list that ``network`` was built for; if it runs at
    any width, the multiples of 1/32 in its range.
    """
    low, high = network.width_range
    subnets = subnets_of(network)
    if subnets is not None:
        return [s for s in reversed(subnets) if low <= s.width <= high]
    steps = range(math.ceil(low * STEPS - 1e-9),
                  math.floor(high * STEPS + 1e-9) + 1)
    return [Subnet(step / STEPS) for step in steps] or [
        Subnet(width) for width in sorted({low, high})]


def widest_within(subnets: List[Subnet], cost: Callable[[Subnet], float],
                  budget: float, show: Callable[[float], str] = str) -> Choice:
    """The widest of ``subnets`` whose cost is at most ``budget``.

    It is found by bisection, as wider networks cost more. If a *measured* cost
    does not grow with every step, the result is within the budget and the next
    one is not. The cost of each is computed at most once.

    Args:
        subnets (list[Subnet]): The sub-networks, from narrow to wide.
        cost (callable): The cost of a sub-network.
        budget (float): The highest cost.
        show (callable): Writes a cost in a message. Defaults to ``str``.

    Raises:
        ValueError: If the cost of the narrowest exceeds the budget.
    """
    known = cache(cost)
    count = known(subnets[0]) <= budget and bisect_right(
        subnets, budget, lo=1, key=known)
    if not count:
        raise ValueError(
            f'No width is inside the budget of {show(budget)}: the smallest, '
            f'{subnets[0]}, takes {show(known(subnets[0]))}.')
    best = subnets[count - 1]
    if count == len(subnets):
        return Choice(best, known(best))
    return Choice(best, known(best), subnets[count], known(subnets[count]))


def parse_amount(text: str) -> float:
    """A number of operations or parameters, such as '1G' or '5.5e6'."""
    return _parse(text, AMOUNTS, "such as '1G', '250M' or '5500000'")


def parse_seconds(text: str) -> float:
    """A duration in seconds: '10ms', '0.5s', '800us'."""
    return _parse(text, SECONDS, "with its unit, such as '10ms' or '0.5s'")


def _parse(text: str, units: Dict[str, float], example: str) -> float:
    if not isinstance(text, str):
        raise TypeError(f'A budget is a text {example}, got {text!r}.')
    scales = {unit.lower(): scale for unit, scale in units.items()}
    found = re.fullmatch(r'([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)',
                         text.strip().lower())
    try:
        number, unit = found.groups() if found else ('0', '')
        value = float(number) * scales[unit]
    except (KeyError, ValueError):
        value = 0.0
    if not 0.0 < value < math.inf:
        raise ValueError(f'A budget is a positive number {example}, got '
                         f'{text!r}.')
    return value


def format_amount(value: float) -> str:
    """1.052e9 as '1.052G'."""
    return _format(value, AMOUNTS)


def format_seconds(value: float) -> str:
    """0.0123 as '12.3ms'."""
    return _format(value, SECONDS)


def _format(value: float, units: Dict[str, float]) -> str:
    """``value`` in the largest unit that it reaches, or in the smallest."""
    unit = next((unit for unit, scale in units.items() if value >= scale), [
        *units][-1])
    return f'{value / units[unit]:.4g}{unit}'
