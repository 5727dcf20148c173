# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What a sub-network is, and the one way to run it."""
import math
import re
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import (Dict, Iterable, Iterator, List, Optional, Sequence, Tuple,
                    Union)

from torch import Tensor, nn

MILLION = 1_000_000
# A key or a name: 'w0500000', '0.5', 'w0.50', 'dense', 'gated', ...
NAME = re.compile(
    r'(?:w(\d{7})|w?(\d*\.?\d+(?:e-?\d+)?)|full|dense)?_?(gated)?', re.I)


@dataclass(frozen=True)
class Subnet:
    """A sub-network of a slimmable or gated network, as a value.

    Args:
        width (float): The width multiplier in (0, 1]. It is rounded to
            millionths here, and widths are compared nowhere else. Defaults to
            1.0.
        gated (bool): Whether the gates of a gated network are in use; without
            them it runs dense. Defaults to False.

    Raises:
        TypeError: If ``width`` is not a real number.
        ValueError: If ``width`` is not in (0, 1].
    """

    width: float = 1.0
    gated: bool = False

    def __post_init__(self):
        if isinstance(self.width, bool) or not isinstance(self.width, Real):
            raise TypeError(
                f'A width is a number in (0, 1], got {self.width!r} of type '
                f'{type(self.width).__name__}.')
        width = float(self.width)
        if not math.isfinite(width) or not 0.5 / MILLION < width <= 1.0:
            raise ValueError(
                f'A width is a multiplier in (0, 1], got {width}; 1.0 is the '
                'full network.')
        object.__setattr__(self, 'width', round(width * MILLION) / MILLION)

    @classmethod
    def of(cls, value: Union['Subnet', float, str]) -> 'Subnet':
        """A sub-network from itself, its width, its name or its key.

        Example:
            >>> Subnet.of(0.5) == Subnet.of('0.5') == Subnet.of('w0.50')
            True
        """
        if isinstance(value, Subnet):
            return value
        if not isinstance(value, str):
            return cls(value)
        found = NAME.fullmatch(value.strip())
        if found is None or not value.strip():
            raise ValueError(
                'A sub-network is a width such as 0.5, or one of full, dense '
                f'and gated, got {value!r}.')
        millionths, width, gated = found.groups()
        return cls(
            int(millionths) / MILLION if millionths else float(width or 1.0),
            bool(gated))

    @cached_property
    def key(self) -> str:
        """What names buffers and modules: '', 'w0500000', 'gated', ...

        The full, dense network has no key, so that its state dict is that of
        a plain network.
        """
        parts = ([] if self.width == 1.0 else [
            f'w{round(self.width * MILLION):07d}'])
        return '_'.join(parts + ['gated'] * self.gated)

    @property
    def is_full(self) -> bool:
        """Whether this is the full, dense network."""
        return not self.key

    def __str__(self) -> str:
        """The name in logs and tables: 'w0.50', 'w0.28125', 'gated', ..."""
        digits = f'{self.width:.2f}'
        if float(digits) != self.width:
            digits = f'{self.width:.6g}'
        if not self.gated:
            return f'w{digits}'
        return 'gated' if self.width == 1.0 else f'w{digits}_gated'

    def check(self, width_range: Tuple[float, float]) -> 'Subnet':
        """This sub-network, or a ValueError if its width is out of range."""
        low, high = check_width_range(width_range)
        if not low <= self.width <= high:
            raise ValueError(
                f'Width {self.width:g} is outside the range [{low:g}, '
                f'{high:g}] of this network. Use a width inside it, or build '
                'the backbone with another `width_range`.')
        return self


FULL = Subnet()
SubnetLike = Union[Subnet, float, str]


def subnet_list(values: Iterable[SubnetLike]) -> List[Subnet]:
    """The sub-networks of ``values``, widest first and dense before gated.

    Raises:
        ValueError: If there are none, or one is named twice.
    """
    subnets = [Subnet.of(value) for value in values]
    if not subnets or len(set(subnets)) != len(subnets):
        raise ValueError(
            'A list of sub-networks has at least one, each named once, got '
            f'{[str(subnet) for subnet in subnets]}.')
    return sorted(subnets, key=lambda subnet: (-subnet.width, subnet.gated))


def check_width_range(width_range: Tuple[float, float]) -> Tuple[float, float]:
    """Return (lowest, highest) width, or raise with what is allowed."""
    try:
        low, high = width_range
    except (TypeError, ValueError):
        raise ValueError(
            'width_range is a pair (lowest, highest) of widths in (0, 1], got '
            f'{width_range!r}.') from None
    low, high = Subnet(low).width, Subnet(high).width
    if low > high:
        raise ValueError(
            f'width_range is (lowest, highest), got ({low}, {high}).')
    return low, high


class SlimmableLayer(nn.Module):
    """Mix-in for a layer that runs several sub-networks.

    The sub-network is set from outside, by :func:`at`. A subclass turns it
    into channel counts in :meth:`on_subnet`, once per change and not once per
    forward pass.

    Attributes:
        subnet (Subnet): The sub-network that the layer runs.
        subnets (sequence[Subnet]): Those that it can run, widest first; empty
            if it runs any width.
    """

    subnet: Subnet = FULL
    subnets: Sequence[Subnet] = ()

    @property
    def width(self) -> float:
        """The width of the sub-network that the layer runs."""
        return self.subnet.width

    def on_subnet(self) -> None:
        """Recompute what depends on ``self.subnet``."""
        raise NotImplementedError(
            f'{type(self).__name__} does not define what a sub-network means '
            'to it.')

    def row_blocks(self, width: float) -> Optional[List[Tuple[int, int]]]:
        """The rows (dimension 0) of its parameters that ``width`` uses.

        ``(start, stop)`` pairs where these are not the leading rows, else
        None.
        """
        return None

    def measured_subnets(self) -> Optional[List[Subnet]]:
        """Those with batch-norm statistics; None if it needs no statistics."""
        return None

    def adapt_file(self, state_dict: Dict[str, Tensor], prefix: str) -> None:
        """Give the tensors of older files their keys, in place."""

    def pick(self, state_dict: Dict[str, Tensor], prefix: str,
             subnet: Subnet) -> None:
        """Give the private tensors of ``subnet`` the keys of a plain layer.

        Works in place on a full network's ``state_dict``, and does nothing
        for a layer that keeps no tensors per sub-network.
        """

    def extra_repr(self) -> str:
        """The arguments of the plain layer, then sub-network and slicing."""
        return f'{super().extra_repr()}, subnet={self.subnet}'


class KeepsOwnSubnet:
    """Mix-in for a module whose layers are not reached from outside.

    A momentum teacher is such a module: narrowing a whole algorithm must not
    narrow the targets as well. To change it, pass the teacher itself.
    """


def reached(module: nn.Module) -> Iterator[nn.Module]:
    """``module`` and all modules under it, except those of a teacher.

    The order is that of :meth:`torch.nn.Module.modules`. The loop avoids its
    nested generators, which are slow, because every pass walks the network.
    """
    stack = [module]
    while stack:
        module = stack.pop()
        yield module
        stack += [
            child for child in reversed(module._modules.values())
            if child is not None and not isinstance(child, KeepsOwnSubnet)]


def slimmable_layers(module: nn.Module) -> Iterator[SlimmableLayer]:
    """The slimmable layers under ``module``, except those of a teacher."""
    return (each for each in reached(module)
            if isinstance(each, SlimmableLayer))


def subnets_of(network: nn.Module) -> Optional[List[Subnet]]:
    """The sub-networks that all layers of ``network`` can run, widest first.

    Returns:
        list[Subnet], optional: None if any width of its range can run.
    """
    lists = [
        layer.subnets for layer in slimmable_layers(network) if layer.subnets]
    return [
        subnet for subnet in lists[0]
        if all(subnet in each for each in lists)] if lists else None


def check_subnets(network: nn.Module, subnets: Iterable[SubnetLike]) -> None:
    """Raise the errors of :func:`set_subnet` if it has not all ``subnets``."""
    for subnet in subnets:
        with at(network, subnet):
            pass


def check_statistics(network: nn.Module, subnet: SubnetLike) -> None:
    """Raise unless all batch norms have the statistics of ``subnet``.

    Raises:
        ValueError: With the sub-networks whose statistics were measured, and
            how to measure these.
    """
    subnet = Subnet.of(subnet)
    for layer in slimmable_layers(network):
        measured = layer.measured_subnets()
        if measured is not None and subnet not in measured:
            raise missing_statistics(subnet, measured)


def has_statistics(network: nn.Module, subnet: SubnetLike) -> bool:
    """Whether all batch norms have the statistics of ``subnet``."""
    try:
        check_statistics(network, subnet)
    except ValueError:
        return False
    return True


def missing_statistics(subnet: Subnet, measured: List[Subnet]) -> ValueError:
    """The error for a sub-network whose statistics were never measured."""
    name = str(subnet) if subnet.gated else subnet.width
    return ValueError(
        f'There are no batch-norm statistics for {subnet}; measured are: '
        f'{", ".join(map(str, measured)) or "none"}. Training tracks none. '
        'Measure them with us3l_mm.evaluation.calibrate(network, batches, '
        f'[{name!r}]), or with tools/evaluate_widths.py CONFIG CKPT '
        f'--widths {name} --save-checkpoint FILE and use that file.')


def _as_list(modules: Union[nn.Module, List[nn.Module]]) -> List[nn.Module]:
    found = [modules] if isinstance(modules, nn.Module) else modules
    if not isinstance(found, (list, tuple)) or not all(
            isinstance(module, nn.Module) for module in found):
        raise TypeError('A network is a torch.nn.Module, or a list of them, '
                        f'got {modules!r}.')
    return list(found)


def set_subnet(modules: Union[nn.Module, List[nn.Module]],
               subnet: SubnetLike) -> None:
    """Set the sub-network of every slimmable layer under ``modules``.

    Args:
        modules (nn.Module or list[nn.Module]): The networks. A teacher inside
            one of them is not reached (:class:`KeepsOwnSubnet`).
        subnet (Subnet, float or str): The sub-network or its width, within
            the ``width_range`` of the networks.

    Raises:
        TypeError, ValueError: If the networks do not have it; nothing is
            changed then.
    """
    _switch(modules, Subnet.of(subnet))


def _switch(modules: Union[nn.Module, List[nn.Module]],
            subnet: Subnet) -> List[Tuple[SlimmableLayer, Subnet]]:
    """:func:`set_subnet`, which returns what every layer ran before."""
    before = []
    for root in _as_list(modules):
        for module in reached(root):
            if isinstance(module, SlimmableLayer):
                before.append((module, module.subnet))
            elif hasattr(module, 'width_range'):
                subnet.check(module.width_range)
        if subnet.gated and subnet not in (subnets_of(root) or ()):
            raise ValueError(f'{type(root).__name__} has no gates, so there '
                             'is no gated sub-network. Use a width.')
    try:
        _apply((layer, subnet) for layer, _ in before)
    except ValueError:  # a layer may have fewer sub-networks than its network
        _apply(before)
        raise
    return before


def _apply(subnets: Iterable[Tuple[SlimmableLayer, Subnet]]) -> None:
    for layer, subnet in subnets:
        if layer.subnet != subnet:
            # Not by setattr, where torch looks for a tensor or a module first.
            layer.__dict__['subnet'] = subnet
            layer.on_subnet()


@contextmanager
def at(modules: Union[nn.Module, List[nn.Module]], subnet: SubnetLike):
    """Run a block with ``subnet``, and restore what ran before.

    Blocks may be nested. Arguments and errors are those of
    :func:`set_subnet`.

    Example:
        >>> with at(network, Subnet(0.5)):
        ...     maps = network(images)
    """
    before = _switch(modules, Subnet.of(subnet))
    try:
        yield
    finally:
        _apply(before)


def at_width(modules: Union[nn.Module, List[nn.Module]], width: float):
    """Short for ``at(modules, Subnet(width))``."""
    return at(modules, Subnet.of(width))
