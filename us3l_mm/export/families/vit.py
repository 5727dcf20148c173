# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The stock classes for sub-networks of a vision transformer."""
from typing import Optional, Tuple

from mmpretrain.models import VisionTransformer
from torch import nn

from us3l_mm.models.backbones import SlimmableViT
from us3l_mm.models.layers import active_steps
from .family import Family, non_default

# Arguments of MMPretrain's VisionTransformer that change what it computes.
SHAPING = ('out_type', 'with_cls_token', 'final_norm', 'interpolate_mode')


class ViTFamily(Family):
    """Vision transformers.

    With ``slicing='embed'``, each width is a stock network. With
    ``slicing='input'``, only the full width is, as the linear layers of the
    stock class read all of their input.
    """

    name = 'ViT'
    slimmable = (SlimmableViT, )

    def stock_class(self, backbone: nn.Module) -> type:
        return VisionTransformer

    def arguments(self, backbone: nn.Module) -> dict:
        arguments = self._stock_arguments(backbone, backbone.num_heads)
        if backbone.slicing != 'input':
            arguments['slicing'] = backbone.slicing
        if not backbone.skip_dead and backbone.slicing == 'input':
            arguments['skip_dead'] = False
        return arguments

    def plain_arguments(self, backbone: nn.Module,
                        width: float) -> Optional[dict]:
        if backbone.slicing == 'embed':
            return self._stock_arguments(
                backbone,
                active_steps(backbone.num_heads, width, backbone.num_heads))
        is_full = all(
            layer.active(width) == layer.active(1.0)
            for layer in (backbone.layers[0].attn.qkv,
                          backbone.layers[0].ffn.layers[1]))
        return (self._stock_arguments(backbone, backbone.num_heads)
                if is_full else None)

    def _stock_arguments(self, backbone: nn.Module, heads: int) -> dict:
        """The arguments of MMPretrain's class with this number of heads."""
        first = backbone.layers[0]
        projection = backbone.patch_embed.projection
        sides = dict(img_size=backbone.img_size,
                     patch_size=projection.kernel_size)
        arch = dict(num_layers=backbone.num_layers, num_heads=heads)
        for name in ('embed_dims', 'feedforward_channels'):
            arch[name] = getattr(backbone, name) // backbone.num_heads * heads
        return dict(
            arch=arch, **{
                name: value[0] if value[0] == value[1] else tuple(value)
                for name, value in sides.items()},
            **non_default(
                dict(in_channels=projection.in_channels,
                     qkv_bias=first.attn.qkv.bias is not None, norm_cfg=dict(
                         type='LN', eps=first.ln1.eps), pre_norm=isinstance(
                             backbone.pre_norm, nn.LayerNorm), **{
                                 name: getattr(backbone, name)
                                 for name in SHAPING}), VisionTransformer))

    def map_channels(self, plain: nn.Module) -> Tuple[int, ...]:
        return (plain.embed_dims, )

    def map_indices(self, plain: nn.Module) -> Tuple[int, ...]:
        return (plain.num_layers - 1, )

    def detector_arguments(self, plain: nn.Module) -> dict:
        return dict(out_indices=self.map_indices(plain), out_type='featmap')

    def detector_neck(self, plain: nn.Module) -> dict:
        return dict(type='us3l_mm.SimpleFPN', **super().detector_neck(plain))

    def input_size(self, backbone: nn.Module) -> int:
        return max(backbone.img_size)
