# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The sub-networks that one training step runs, as values."""
from dataclasses import dataclass
from typing import Sequence, Tuple

from us3l_mm.models.layers import FULL_WIDTH


@dataclass(frozen=True)
class Subnet:
    """One pass of a training step.

    Attributes:
        width (float): The multiplier to run at.
        name (str): A name that stays while the width changes, for the log:
            'max', 'rand' (or 'rand0', 'rand1', ...), 'min'.
        is_base (bool): Whether this is the base pass, the widest.
    """

    width: float
    name: str = 'max'
    is_base: bool = True


@dataclass(frozen=True)
class Plan:
    """What one training step does.

    Attributes:
        subnets (tuple[Subnet, ...]): The passes, the base pass first.
        stage (int): Stage of dynamic sampling, from 0.
        progress (float): Share of training that is behind, in [0, 1).
    """

    subnets: Tuple[Subnet, ...] = (Subnet(FULL_WIDTH), )
    stage: int = 0
    progress: float = 0.0

    @classmethod
    def of(cls, widths: Sequence[float], stage: int = 0,
           progress: float = 0.0) -> 'Plan':
        """The plan that runs ``widths``, sorted from wide to narrow here."""
        wide, *narrow = sorted(widths, reverse=True)
        names = [f'rand{i}' for i in range(len(narrow) - 1)] + ['min']
        if len(narrow) == 2:
            names[0] = 'rand'
        return cls((Subnet(wide), *(Subnet(width, name, is_base=False)
                                    for width, name in zip(narrow, names))),
                   stage, progress)

    @property
    def base(self) -> Subnet:
        """The base pass."""
        return self.subnets[0]
