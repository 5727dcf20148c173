# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import math
from copy import deepcopy
from typing import List, Optional

import torch
from torch import Tensor, nn

from us3l_mm.models.layers import KeepsOwnWidth, at_width


def encode(backbone: nn.Module, neck: nn.Module,
           views: List[Tensor]) -> List[tuple]:
    """Maps and embedding of each view, at the width the layers are set to.

    The views go through one by one, so that batch statistics are per view.

    Args:
        backbone (nn.Module): Gives a tuple of maps, each (N, c, H, W).
        neck (nn.Module): The projector, on the last map.
        views (list[Tensor]): Images, each (N, 3, H, W).

    Returns:
        list[tuple]: Per view the maps and the embedding, (N, d).
    """
    encoded = []
    for view in views:
        maps = backbone(view)
        encoded.append((maps, neck(maps[-1:])[0]))
    return encoded


class Teacher(KeepsOwnWidth, nn.Module):
    """The momentum encoder: an average of the student over its updates.

    ``teacher = (1 - momentum) * teacher + momentum * student``, over whole
    parameters, in one fused call and without asking the device for anything.
    It runs at the width it is told and not at the student's. Its norms use
    batch statistics, like the student's in training, so there are no buffers
    to average.

    Args:
        backbone (nn.Module): The student's backbone; copied.
        neck (nn.Module): The student's projector; copied.
        momentum (float): The share of the student that enters per update
            (MMEngine's sense): 0.01 is a paper's m = 0.99.
        final_momentum (float, optional): What the share comes to at the end
            of training, along half a cosine; 0.0 is a paper's m -> 1.
            Defaults to None: it stays.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module,
                 momentum: float = 0.01,
                 final_momentum: Optional[float] = None):
        super().__init__()
        final_momentum = momentum if final_momentum is None else final_momentum
        for name, value in (('teacher_momentum', momentum),
                            ('final_teacher_momentum', final_momentum)):
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
        # A plain list: the student's parameters are not ours to save.
        self._student = [*backbone.parameters(), *neck.parameters()]
        self._own = [*self.backbone.parameters(), *self.neck.parameters()]
        # The copies above were made before the student's initial weights.
        self._is_copy = False
        self.encode = encode  # CompileHook compiles it

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
    def forward(self, views: List[Tensor], width: float) -> List[tuple]:
        """What :func:`encode` returns, at ``width``."""
        with at_width(self, width):
            return self.encode(self.backbone, self.neck, views)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # A file without a teacher leaves us to be copied from the student.
        self._is_copy = any(key.startswith(prefix) for key in state_dict)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
