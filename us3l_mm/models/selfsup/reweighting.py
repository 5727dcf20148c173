# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Weights of the sub-networks of a list in the joint loss.

Source: SlimCLR, arXiv 2209.15525, loss re-weighting, whose code numbers them.
"""
from typing import Callable, Dict, List, Sequence, Union

from us3l_mm.models.layers import Subnet


def _share(widths: List[float]) -> List[float]:
    return [width / sum(widths) for width in widths]


def _times_count(shares: List[float]) -> List[float]:
    return [len(shares) * share for share in shares]


def _cumulative(widths: List[float]) -> List[float]:
    narrower = [sum(widths[i + 1:]) for i in range(len(widths))]
    return _times_count(_share([1 + rest for rest in narrower]))


# Functions of the widths from wide to narrow. The numbers are those of the
# authors' code, the values those of widths 1, 0.75, 0.5 and 0.25.
REWEIGHTING: Dict[str, Callable[[List[float]], List[float]]] = {
    # 0: 1, 1, 1, 1
    'equal':
    lambda widths: [1.0] * len(widths),
    # 1: 0.4, 0.3, 0.2, 0.1
    'share of widths':
    _share,
    # 2: 1, 0.75, 0.5, 0.25
    'width':
    list,
    # 3: 1.6, 1.2, 0.8, 0.4
    'width, mean 1':
    lambda widths: _times_count(_share(widths)),
    # 5, the authors' default: 2.5, 1, 1, 1
    'full plus all':
    lambda widths: [1 + sum(widths[1:])] + [1.0] * (len(widths) - 1),
    # 6: 1.538, 1.077, 0.769, 0.615
    'narrower sum, mean 1':
    _cumulative,
    # 7: 1.75, 1, 1, 1
    'full plus widest':
    lambda widths: [1 + max(widths[1:], default=0.0)] + [1.0] *
    (len(widths) - 1), }


def pass_weights(subnets: Sequence[Subnet],
                 weights: Union[str, Sequence[float]]) -> List[float]:
    """A weight for each of ``subnets``, widest first.

    Args:
        subnets (sequence[Subnet]): The sub-networks, widest first.
        weights (str or sequence[float]): A name of :data:`REWEIGHTING`, or
            the weights themselves.

    Raises:
        ValueError: If there is no such name, or the weights are not positive
            numbers, one for each sub-network.
    """
    if isinstance(weights, str):
        if weights not in REWEIGHTING:
            raise ValueError(
                f'weights is one of {[*REWEIGHTING]} or a list of '
                f'numbers, got {weights!r}.')
        return REWEIGHTING[weights]([subnet.width for subnet in subnets])
    given = [float(weight) for weight in weights]
    if len(given) != len(subnets) or not all(0 <= w < 1e6 for w in given):
        raise ValueError(
            f'weights has a number of at least 0 for each of the '
            f'{len(subnets)} sub-networks {[str(s) for s in subnets]}, widest '
            f'first, got {list(weights)}.')
    return given
