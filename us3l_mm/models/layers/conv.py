# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from us3l_mm.registry import MODELS
from .channels import active_channels, active_steps
from .subnet import SlimmableLayer, SubnetLike, Subnet


@MODELS.register_module()
class SlimmableConv2d(SlimmableLayer, nn.Conv2d):
    """A convolution that runs on its leading channels.

    At width w the kernel is ``weight[:c_out, :c_in]`` and the bias
    ``bias[:c_out]``, with c from :func:`active_channels`; at full width this
    is :class:`torch.nn.Conv2d`. A depthwise convolution keeps one group per
    active channel. Source: US3L, arXiv 2303.06870, and US-Nets, 1903.05134.

    Args:
        slice_in (bool): Whether the input narrows with the width; False for
            the stem, which always sees the whole image. Defaults to True.
        slice_out (bool): Whether the output narrows. Defaults to True.
        ratio (int or tuple[int, int]): Expand ratio to round by, one for
            both sides or (input, output). Defaults to 1.
        divisor (int): Channels are rounded to multiples of it. Defaults to 8.
        steps (int, optional): Instead, both sides narrow in so many equal
            steps. Defaults to None.
        *args: Those of :class:`torch.nn.Conv2d`.
        **kwargs: The same, by name. ``groups`` is 1 or ``in_channels``
            (depthwise), ``padding_mode`` is 'zeros'.

    Shapes: (N, c_in, H, W) to (N, c_out, H', W').
    """

    def __init__(self, *args, slice_in: bool = True, slice_out: bool = True,
                 ratio: Union[int, Tuple[int, int]] = 1, divisor: int = 8,
                 steps: Optional[int] = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.depthwise = self.groups == self.in_channels and self.groups > 1
        if self.groups > 1 and not (self.depthwise
                                    and self.out_channels == self.in_channels):
            raise ValueError(
                'A slimmable convolution is dense (groups=1) or depthwise '
                f'(groups=in_channels=out_channels), got groups={self.groups} '
                f'with {self.in_channels} input and {self.out_channels} '
                'output channels.')
        if self.padding_mode != 'zeros':
            raise ValueError("A slimmable convolution pads with 'zeros', got "
                             f'padding_mode={self.padding_mode!r}.')
        self.slice_in, self.slice_out = slice_in, slice_out
        self.ratio = (ratio, ratio) if isinstance(ratio, int) else ratio
        self.divisor, self.steps = divisor, steps
        self.on_subnet()

    def active(self, width: float) -> tuple:
        """(input channels, output channels) at ``width``."""
        c_in, c_out = self.in_channels, self.out_channels
        if self.slice_in:
            c_in = self._rounded(c_in, width, self.ratio[0])
        if self.slice_out:
            c_out = self._rounded(c_out, width, self.ratio[1])
        return c_in, c_out

    def _rounded(self, channels: int, width: float, ratio: int) -> int:
        if self.steps is not None:
            return active_steps(channels, width, self.steps)
        return active_channels(channels, width, self.divisor, ratio)

    def on_subnet(self) -> None:
        self.active_in, self.active_out = self.active(self.width)

    def forward(self, x: Tensor) -> Tensor:
        c_in, c_out = self.active_in, self.active_out
        weight, bias = self.weight, self.bias
        cut = (0 if self.depthwise else c_in - self.in_channels,
               c_out - self.out_channels)
        if any(cut):
            # Negative padding crops in one node of the graph and gives a dense
            # kernel. Slicing takes two nodes, and its result is strided.
            weight = F.pad(weight, (0, 0, 0, 0, 0, cut[0], 0, cut[1]))
            bias = None if bias is None else bias[:c_out]
        return F.conv2d(x, weight, bias, self.stride, self.padding,
                        self.dilation, c_in if self.depthwise else 1)

    @torch.no_grad()
    def plain(self, subnet: SubnetLike) -> nn.Conv2d:
        """A plain convolution with a copy of the weights of ``subnet``."""
        c_in, c_out = self.active(Subnet.of(subnet).width)
        conv = nn.Conv2d(c_in, c_out, self.kernel_size, self.stride,
                         self.padding, self.dilation,
                         c_in if self.depthwise else 1, self.bias is not None,
                         device=self.weight.device, dtype=self.weight.dtype)
        conv.weight.copy_(self.weight[:c_out, :conv.weight.shape[1]])
        if self.bias is not None:
            conv.bias.copy_(self.bias[:c_out])
        return conv.train(self.training)

    def extra_repr(self) -> str:
        return (f'{super().extra_repr()}, slice_in={self.slice_in}, '
                f'slice_out={self.slice_out}, '
                f'active={self.active_in}->{self.active_out}')
