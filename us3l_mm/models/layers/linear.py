# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from us3l_mm.registry import MODELS
from .channels import active_channels, active_steps
from .subnet import SlimmableLayer, SubnetLike, Subnet


class LeadingLinear(nn.Linear):
    """An ordinary linear layer on the leading features of its input.

    Shapes: (..., at least in_features) to (..., out_features).
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., :self.in_features])


@MODELS.register_module()
class SlimmableLinear(SlimmableLayer, nn.Linear):
    """A linear layer that runs on its leading features.

    At width w it uses ``weight[:c_out, :c_in]`` and ``bias[:c_out]``. Source:
    US3L, arXiv 2303.06870.

    Args:
        slice_in (bool): Whether the input narrows with the width. Defaults to
            True.
        slice_out (bool): Whether the output narrows; False for the first
            layer of US3L's projector, whose embedding is the same space at
            every width. Defaults to True.
        divisor (int): Features are rounded to multiples of it. Defaults to 8.
        steps (int, optional): Instead, both sides narrow in so many equal
            steps, such as the heads of an attention. Defaults to None.
        cut_input (bool): The input arrives with all features, of which the
            leading ones are taken, as in US3L's vision transformer; else it
            must have been narrowed. Defaults to False.
        *args: Those of :class:`torch.nn.Linear`.
        **kwargs: The same, by name.

    Shapes: (..., c_in) to (..., c_out); (..., C_in) with ``cut_input``.
    """

    def __init__(self, *args, slice_in: bool = True, slice_out: bool = True,
                 divisor: int = 8, steps: Optional[int] = None,
                 cut_input: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.slice_in, self.slice_out = slice_in, slice_out
        self.divisor, self.steps = divisor, steps
        self.cut_input = cut_input
        self.on_subnet()

    def active(self, width: float) -> tuple:
        """(input features, output features) at ``width``."""
        c_in, c_out = self.in_features, self.out_features
        if self.slice_in:
            c_in = self._rounded(c_in, width)
        if self.slice_out:
            c_out = self._rounded(c_out, width)
        return c_in, c_out

    def _rounded(self, features: int, width: float) -> int:
        if self.steps is not None:
            return active_steps(features, width, self.steps)
        return active_channels(features, width, self.divisor)

    def on_subnet(self) -> None:
        self.active_in, self.active_out = self.active(self.width)

    def forward(self, x: Tensor) -> Tensor:
        c_in, c_out = self.active_in, self.active_out
        if self.cut_input:
            x = x[..., :c_in]
        bias = None if self.bias is None else self.bias[:c_out]
        return F.linear(x, self.weight[:c_out, :c_in], bias)

    @torch.no_grad()
    def plain(self, subnet: SubnetLike) -> nn.Linear:
        """A plain linear layer with a copy of the weights of ``subnet``."""
        c_in, c_out = self.active(Subnet.of(subnet).width)
        cuts = self.cut_input and c_in < self.in_features
        linear = (LeadingLinear if cuts else nn.Linear)(
            c_in, c_out, self.bias is not None, device=self.weight.device,
            dtype=self.weight.dtype)
        linear.weight.copy_(self.weight[:c_out, :c_in])
        if self.bias is not None:
            linear.bias.copy_(self.bias[:c_out])
        return linear.train(self.training)

    def extra_repr(self) -> str:
        return (f'{super().extra_repr()}, slice_in={self.slice_in}, '
                f'slice_out={self.slice_out}, '
                f'active={self.active_in}->{self.active_out}')
