# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import math
from copy import deepcopy
from typing import List, Optional

import torch
from torch import Tensor, nn

from us3l_mm.models.layers import (KeepsOwnSubnet, SubnetLike, at,
                                   keep_full_norms)
from .multi_pass import encode


class Teacher(KeepsOwnSubnet, nn.Module):
    """The momentum encoder: an average of the student over its updates.

    ``teacher = (1 - momentum) * teacher + momentum * student``, over whole
    parameters, in one fused call and without asking the device for anything.
    It runs the sub-network that it is given, whatever the student runs. Its
    norms use batch statistics, like the student's in training, so there are
    no buffers to average.

    Args:
        backbone (nn.Module): The student's backbone; copied.
        neck (nn.Module): The student's projector; copied.
        momentum (float): The share of the student that enters per update
            (MMEngine's sense): 0.01 is a paper's m = 0.99.
        final_momentum (float, optional): What the share comes to at the end
            of training, along half a cosine; 0.0 is a paper's m -> 1.
            Defaults to None: it stays.
        full_only (bool): Whether it only runs the full network, so that it
            keeps none of the private norms of other sub-networks. Defaults to
            False.
    """

    def __init__(
            self, backbone: nn.Module, neck: nn.Module, momentum: float = 0.01,
            final_momentum: Optional[float] = None, full_only: bool = False):
        super().__init__()
        final_momentum = momentum if final_momentum is None else final_momentum
        for name, value in (('teacher.momentum', momentum),
                            ('teacher.final_momentum', final_momentum)):
            if not 0.0 <= value <= 0.5:
                raise ValueError(
                    f'{name} is the share of the student that enters the '
                    f"teacher per update (MMEngine's sense), got {value}; a "
                    f"paper's m={value} is {1 - value:.4g} here.")
        self.momentum, self.final_momentum = momentum, final_momentum
        self.backbone = deepcopy(backbone)
        self.neck = deepcopy(neck)
        self.backbone.weights_required = False
        self.requires_grad_(False)
        if full_only:
            keep_full_norms(self)
        # A plain list: the student's parameters are not ours to save.
        student = nn.ModuleDict(dict(backbone=backbone, neck=neck))
        self._student = [
            student.get_parameter(name) for name, _ in self.named_parameters()]
        self._own = [*self.parameters()]
        # The copies above were made before the student's initial weights.
        self._is_copy = False

    def momentum_at(self, progress: float) -> float:
        """The share that enters when ``progress`` (0 to 1) is behind.

        Half a cosine from ``momentum`` to ``final_momentum``, as in BYOL
        (arXiv 2006.07733) and MoCo v3 (2104.02057).
        """
        remaining = (1 + math.cos(math.pi * progress)) / 2
        return self.final_momentum + remaining * (self.momentum -
                                                  self.final_momentum)

    @torch.no_grad()
    def update(self, progress: float = 0.0) -> None:
        """Let the student enter; the first update copies it."""
        torch._foreach_lerp_(
            self._own, self._student,
            self.momentum_at(progress) if self._is_copy else 1.0)
        self._is_copy = True

    @torch.no_grad()
    def forward(self, views: List[Tensor], subnet: SubnetLike) -> List[tuple]:
        """What :func:`encode` returns, of ``subnet``."""
        with at(self, subnet):
            return encode(self.backbone, self.neck, views)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # A file without a teacher leaves us to be copied from the student.
        self._is_copy = any(key.startswith(prefix) for key in state_dict)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
