# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Attention of which whole heads, and parts of one, can be left out."""
from typing import List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from us3l_mm.registry import MODELS
from .linear import LeadingLinear, SlimmableLinear
from .subnet import Subnet, SubnetLike


class QKV(LeadingLinear):
    """An ordinary linear layer to query, key and value, side by side.

    Args:
        in_features (int): That it uses of its input, the leading ones.
        parts (tuple[int, int]): Features of query and key, and of value.
    """

    def __init__(self, in_features: int, parts: Tuple[int, int], **kwargs):
        super().__init__(in_features, 2 * parts[0] + parts[1], **kwargs)
        self.active_parts = parts


@MODELS.register_module()
class SlimmableQKV(SlimmableLinear):
    """The linear layer to query, key and value of an attention.

    Its output is three blocks of ``embed_dims`` rows, each cut separately: a
    fused slice of its leading rows would take all of the query and nothing of
    the value. Of the value those v features stay that the projection reads;
    of query and key the heads that these belong to, in whole.

    Args:
        embed_dims (int): Features at full width, of the input and of each
            block.
        num_heads (int): Into how many heads they are divided.
        **kwargs: Those of :class:`SlimmableLinear`.

    Shapes: as :class:`SlimmableLinear`, with c_out = 2 qk + v.
    """

    def __init__(self, embed_dims: int, num_heads: int, **kwargs):
        self.embed_dims, self.num_heads = embed_dims, num_heads
        super().__init__(embed_dims, 3 * embed_dims, **kwargs)

    def parts(self, width: float) -> Tuple[int, int]:
        """Features (of query and of key, of value) at ``width``."""
        if not self.slice_out:
            return self.embed_dims, self.embed_dims
        head, value = self.embed_dims // self.num_heads, self._rounded(
            self.embed_dims, width)
        return -(-value // head) * head, value

    def active(self, width: float) -> tuple:
        """(input features, output features of all blocks) at ``width``."""
        qk, value = self.parts(width)
        c_in = self.in_features
        return (self._rounded(c_in, width) if self.slice_in else c_in,
                2 * qk + value)

    def row_blocks(self, width: float) -> List[Tuple[int, int]]:
        (qk, value), dims = self.parts(width), self.embed_dims
        return [(0, qk), (dims, dims + qk), (2 * dims, 2 * dims + value)]

    def on_subnet(self) -> None:
        super().on_subnet()
        self.active_parts = self.parts(self.width)
        self.active_blocks = self.row_blocks(self.width)

    def forward(self, x: Tensor) -> Tensor:
        if self.cut_input:
            x = x[..., :self.active_in]
        return F.linear(x, *self._cut(self.active_in, self.active_blocks))

    def _cut(self, c_in: int, blocks: List[Tuple[int, int]]) -> tuple:
        """Weight (rows, c_in) and bias (rows, ) or None."""
        weight, bias = self.weight[:, :c_in], self.bias
        if sum(stop - start for start, stop in blocks) < len(weight):
            weight = torch.cat([weight[slice(*rows)] for rows in blocks])
            if bias is not None:
                bias = torch.cat([bias[slice(*rows)] for rows in blocks])
        return weight, bias

    @torch.no_grad()
    def plain(self, subnet: SubnetLike) -> QKV:
        """A plain linear layer with a copy of the weights of ``subnet``."""
        width = Subnet.of(subnet).width
        c_in, _ = self.active(width)
        weight, bias = self._cut(c_in, self.row_blocks(width))
        linear = QKV(c_in, self.parts(width), bias=bias is not None,
                     device=weight.device, dtype=weight.dtype)
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
        return linear.train(self.training)


class SlimmableAttention(nn.Module):
    """MMPretrain's self-attention, of as many heads as its ``qkv`` gives.

    It runs on torch's fused kernel. A value of fewer features than its heads
    have is filled up with zeros, which the projection does not read.

    Args:
        attention (nn.Module): MMPretrain's MultiheadAttention; its parts are
            taken over.
        qkv (nn.Module): A :class:`SlimmableQKV`, or in its place the plain
            layer it becomes.
        proj (nn.Module): The projection, likewise.

    Shapes: (N, L, c) to the same, or (N, L, C) where the layers take the
    leading features themselves.
    """

    def __init__(self, attention: nn.Module, qkv: nn.Module, proj: nn.Module):
        super().__init__()
        self.head_dims = attention.head_dims
        self.attn_drop = attention.attn_drop
        self.qkv, self.proj = qkv, proj
        self.proj_drop = attention.proj_drop
        self.out_drop = attention.out_drop
        self.gamma1 = attention.gamma1

    def forward(self, x: Tensor) -> Tensor:
        qk, value = self.qkv.active_parts
        q, k, v = self.qkv(x).split((qk, qk, value), dim=-1)
        if value < qk:
            v = F.pad(v, (0, qk - value))
        q, k, v = (part.unflatten(-1, (-1, self.head_dims)).transpose(1, 2)
                   for part in (q, k, v))
        x = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.attn_drop if self.training else 0.0)
        x = self.proj(x.transpose(1, 2).flatten(2))
        return self.out_drop(self.gamma1(self.proj_drop(x)))
