# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Whether the tensors of a file are those of a network."""
from dataclasses import dataclass
from typing import Callable, Collection, Dict, List, Sequence, Union

from torch import Tensor

SHOWN = 3  # tensors of each kind in a message


@dataclass(frozen=True)
class Misfit:
    """How the tensors of a file differ from those of a network.

    Attributes:
        own (dict[str, Tensor]): The tensors that the network needs.
        given (dict[str, Tensor]): The tensors of the file, by the same names.
        missing (list[str]): Names that the file lacks.
        shape (list[str]): Names of tensors of another shape in the file.
        dtype (list[str]): Names of tensors that are integers in the file and
            real numbers in the network, or the reverse.
        unknown (list[str]): Weights of the file for layers that the network
            does not have.
    """

    own: Dict[str, Tensor]
    given: Dict[str, Tensor]
    missing: List[str]
    shape: List[str]
    dtype: List[str]
    unknown: List[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.shape or self.dtype or self.unknown)

    def lines(self, prefix: str) -> List[str]:
        """The first few names of each kind, below ``prefix``."""
        own, given = self.own, self.given
        return [
            *(f'  missing: {prefix}{name} {tuple(own[name].shape)}'
              for name in self.missing[:SHOWN]),
            *(f'  shape: {prefix}{name} is {tuple(given[name].shape)} in the '
              f'file, {tuple(own[name].shape)} in the model'
              for name in self.shape[:SHOWN]),
            *(f'  type: {prefix}{name} is {given[name].dtype} in the file, '
              f'{own[name].dtype} in the model'
              for name in self.dtype[:SHOWN]),
            *(f'  not in the model: {prefix}{name}'
              for name in self.unknown[:SHOWN])]


def check_fit(
    own: Dict[str, Tensor], given: Dict[str, Tensor], network: str,
    advice: Union[str, Callable[[Misfit],
                                str]], source: str = 'The state dict',
    prefix: str = '', parts: Collection[str] = (), keys: Sequence[str] = ()
) -> None:
    """Refuse the tensors of a file that are not those of a network.

    Numbers are not compared, and real numbers of any precision fit.

    Args:
        own (dict[str, Tensor]): The tensors that the network needs, such as
            its parameters.
        given (dict[str, Tensor]): The tensors of the file. It may have more.
        network (str): What the network is, for instance
            'SlimmableResNet(depth=18)'.
        advice (str or callable): What to do, or a function of a
            :class:`Misfit` that says it.
        source (str): What the file is. Defaults to 'The state dict'.
        prefix (str): What precedes the names in the file. Defaults to ''.
        parts (collection[str]): The children of the network. A ``weight`` of
            the file under one of them that ``own`` lacks is refused. Defaults
            to none of them.
        keys (sequence[str]): All keys of the file. Defaults to those of
            ``given``.

    Raises:
        ValueError: With the numbers and some names of the tensors that do not
            fit, and ``advice``.
    """
    common = [name for name in own if name in given]
    misfit = Misfit(own, given, [name for name in own if name not in given], [
        name for name in common if given[name].shape != own[name].shape
    ], [
        name for name in common
        if given[name].is_floating_point() != own[name].is_floating_point()], [
            name for name in given if name not in own
            and name.endswith('.weight') and name.split('.')[0] in parts])
    if not misfit:
        return
    if len(misfit.missing) == len(own):
        start = sorted(keys or given)[:2]
        advice = (f'None of them is in the file below the prefix {prefix!r}' +
                  (f'; the file begins with {start}' if start else '') +
                  '. Give the prefix of its keys (init_cfg.prefix, usually '
                  "'backbone.'), or the file of such a network.")
    elif callable(advice):
        advice = advice(misfit)
    of_type = (f', {len(misfit.dtype)} have another type'
               if misfit.dtype else '')
    raise ValueError('\n'.join([
        f'{source} does not fit this {network}: of its {len(own)} tensors '
        f'{len(misfit.missing)} are not in the file, {len(misfit.shape)} have '
        f'another shape there{of_type}, and {len(misfit.unknown)} of the file '
        'belong to layers that it does not have.', *misfit.lines(prefix),
        advice]))
