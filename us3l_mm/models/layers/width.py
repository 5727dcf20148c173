# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What a width is, how many channels it means, and the one way to set it."""
import math
from contextlib import contextmanager
from numbers import Real
from typing import Iterable, Iterator, List, Optional, Tuple, Union

from torch import nn

FULL_WIDTH = 1.0


def make_divisible(value: float, divisor: int = 8, min_value: int = 1) -> int:
    """Round ``value`` to the nearest multiple of ``divisor``.

    At least ``min_value``, and one step up where rounding down would lose more
    than 10 % (the rounding of the MobileNets; US3L, arXiv 2303.06870, keeps
    it).
    """
    rounded = max(min_value, int(value + divisor / 2) // divisor * divisor)
    if rounded < 0.9 * value:
        rounded += divisor
    return rounded


def active_channels(channels: int, width: float, divisor: int = 8,
                    ratio: int = 1) -> int:
    """How many of ``channels`` leading channels are active at ``width``.

    ``make_divisible(channels * width / ratio) * ratio``, at least ``divisor``
    times ``ratio`` and never more than ``channels``; ``ratio`` is the expand
    ratio of an inverted residual.
    """
    if width == FULL_WIDTH:
        return channels
    # With its default minimum of 1, the rounding of 2.5 would be 9.
    rounded = ratio * make_divisible(channels * width / ratio, divisor,
                                     min_value=divisor)
    return min(channels, rounded)


def active_steps(channels: int, width: float, steps: int) -> int:
    """:func:`active_channels` that narrow in ``steps`` equal steps only.

    Such as the heads of an attention, of which whole ones are kept: the
    nearest number, one more where rounding down would lose more than 10 %, at
    least one.
    """
    return channels // steps * active_channels(steps, width, divisor=1)


def check_width(
    width: float, width_range: Tuple[float, float] = (0.0, 1.0)) -> float:
    """Return ``width`` as a float, or raise with what is allowed.

    Raises:
        TypeError: if ``width`` is not a real number.
        ValueError: if it is not in (0, 1] or not within ``width_range``.
    """
    if isinstance(width, bool) or not isinstance(width, Real):
        raise TypeError(
            f'A width is a number in (0, 1], got {width!r} of type '
            f'{type(width).__name__}.')
    width, (low, high) = float(width), width_range
    if not math.isfinite(width) or not 0.0 < width <= 1.0:
        raise ValueError(
            f'A width is a multiplier in (0, 1], got {width}; 1.0 is the full '
            'network.')
    if not low <= width <= high:
        raise ValueError(
            f'Width {width} is outside the range [{low}, {high}] of this '
            'network. Use a width inside it, or build the backbone with '
            'another `width_range`.')
    return width


def check_width_range(width_range: Tuple[float, float]) -> Tuple[float, float]:
    """Return ``(low, high)`` as floats, or raise with what is allowed."""
    try:
        low, high = width_range
    except (TypeError, ValueError):
        raise ValueError(
            'width_range is a pair (lowest, highest) of widths in (0, 1], got '
            f'{width_range!r}.') from None
    low, high = check_width(low), check_width(high)
    if low > high:
        raise ValueError(
            f'width_range is (lowest, highest), got ({low}, {high}).')
    return low, high


class SlimmableLayer:
    """Mix-in of a layer that runs at any width on one copy of weights.

    The width is set from outside, by :func:`set_width` or :func:`at_width`; a
    subclass turns it into channel counts in :meth:`on_width`, once per change
    and not once per forward.
    """

    width: float = FULL_WIDTH

    def row_blocks(self, width: float) -> Optional[List[Tuple[int, int]]]:
        """The rows (dimension 0) of its parameters that ``width`` uses.

        As ``(start, stop)`` pairs, where they are not the leading ones; None
        where they are.
        """
        return None

    def on_width(self) -> None:
        """Recompute what depends on ``self.width``."""
        raise NotImplementedError(
            f'{type(self).__name__} does not say what a width means to it.')


class KeepsOwnWidth:
    """Mix-in of a module whose layers are not reached from outside.

    A teacher is such a module: narrowing a whole algorithm must not narrow the
    targets with it. Pass the teacher itself to change its width.
    """


def slimmable_layers(module: nn.Module) -> Iterator[SlimmableLayer]:
    """The slimmable layers under ``module``, those of a teacher left out."""
    if isinstance(module, SlimmableLayer):
        yield module
    for child in module.children():
        if not isinstance(child, KeepsOwnWidth):
            yield from slimmable_layers(child)


def _as_list(modules: Union[nn.Module, List[nn.Module]]) -> List[nn.Module]:
    return [modules] if isinstance(modules, nn.Module) else list(modules)


def _check_for(modules: List[nn.Module], width: float) -> float:
    width = check_width(width)
    for module in modules:
        for child in module.modules():
            if hasattr(child, 'width_range'):
                check_width(width, child.width_range)
    return width


def set_width(modules: Union[nn.Module, List[nn.Module]],
              width: float) -> None:
    """Set ``width`` on every slimmable layer under ``modules``.

    Args:
        modules (nn.Module or list[nn.Module]): Networks to set; a teacher
            inside one of them is not reached (:class:`KeepsOwnWidth`).
        width (float): The multiplier, in (0, 1] and within the
            ``width_range`` of the networks.

    Raises:
        TypeError, ValueError: if the width is not allowed; nothing is changed
            then.
    """
    modules = _as_list(modules)
    width = _check_for(modules, width)
    before = _widths(modules)
    try:
        _apply((layer, width) for layer, _ in before)
    except ValueError:  # a layer may run at fewer widths than its network
        _apply(before)
        raise


def _widths(modules: List[nn.Module]) -> List[Tuple[SlimmableLayer, float]]:
    return [(layer, layer.width) for module in modules
            for layer in slimmable_layers(module)]


def _apply(widths: Iterable[Tuple[SlimmableLayer, float]]) -> None:
    for layer, width in widths:
        layer.width = width
        layer.on_width()


@contextmanager
def at_width(modules: Union[nn.Module, List[nn.Module]], width: float):
    """Run a block at ``width``; the widths before it are restored after it.

    Args and errors are those of :func:`set_width`. Blocks nest.
    """
    modules = _as_list(modules)
    before = _widths(modules)
    set_width(modules, width)
    try:
        yield
    finally:
        _apply(before)
