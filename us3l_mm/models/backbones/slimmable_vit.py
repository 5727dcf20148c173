# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""MMPretrain's vision transformer over slimmable layers."""
from typing import Optional, Sequence, Tuple, Union

import torch
from mmpretrain.models import VisionTransformer
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn

from us3l_mm.models.layers import (
    SlimmableAttention, SlimmableConv2d, SlimmableLayerNorm, SlimmableLinear,
    SlimmableQKV, Subnet, active_steps, check_width_range)
from us3l_mm.registry import MODELS
from .pretrained import pretrained_cfg
from .vit_init import INIT_STYLES, init_as_mocov3, sincos_positions
from .weights import SlimmableBackbone

SLICINGS = ('input', 'embed')
POSITIONS = ('learned', 'sincos')
OUT_TYPES = ('cls_token', 'featmap', 'avg_featmap')


def _arch(embed_dims: int, num_heads: int) -> dict:
    return dict(embed_dims=embed_dims, num_layers=12, num_heads=num_heads,
                feedforward_channels=4 * embed_dims)


# US3L, arXiv 2303.06870, which has more and smaller heads than DeiT.
ARCHS = {
    'tiny': _arch(192, 6),
    'small': _arch(384, 12),
    'base': _arch(768, 12)}


@MODELS.register_module()
class SlimmableViT(SlimmableBackbone, VisionTransformer):
    """A vision transformer that runs at any width on one copy of weights.

    MMPretrain's :class:`~mmpretrain.models.VisionTransformer` over slimmable
    layers, with the same arguments, state-dict keys and initial weights; at
    full width the outputs are equal. There are no batch norms and there is
    nothing to calibrate. A width means one of two things:

    * ``slicing='input'``: every linear layer reads only the leading features
      of its input. The residual stream, the norms and the output features
      keep their size. Source: US3L, arXiv 2303.06870. Hidden units and heads
      that no layer reads are not computed, which changes no result; the
      reference computes them (``skip_dead=False``).
    * ``slicing='embed'``: the residual stream, heads, hidden units and norms
      narrow together, by whole heads: to the nearest number, or one more
      where rounding down would lose over 10 %. Memory falls as well, and a
      width is a plain VisionTransformer with fewer features.

    Args:
        arch (str or dict): 'tiny' (192 features, 6 heads), 'small' (384, 12)
            or 'base' (768, 12), all of 12 layers, as in US3L; or another name
            of MMPretrain's, such as 'deit-tiny' (192, 3), or a dict as it
            takes. Defaults to 'small'.
        slicing (str): 'input' or 'embed'. Defaults to 'input'.
        width_range (tuple[float, float]): Lowest and highest width that may
            be set. Defaults to (0.25, 1.0).
        divisor (int): With ``slicing='input'``, features are rounded to
            multiples of it. Defaults to 8.
        positions (str): 'learned', or 'sincos' for the fixed ones of MoCo v3.
            With ``slicing='embed'`` their frequencies are distributed over
            the heads, so that the leading heads suffice to tell positions
            apart. Defaults to 'learned'.
        frozen_patch_embed (bool): Whether the patch embedding stays as it was
            initialised (MoCo v3). Defaults to False.
        init_style (str): Initial weights of 'mmpretrain' or 'mocov3'.
            Defaults to 'mmpretrain'.
        skip_dead (bool): With ``slicing='input'``, leave out what no layer
            reads. Defaults to True.
        width (float, optional): Build an ordinary network of this width, to
            fine-tune, to train a detector on, or to hold a sliced checkpoint.
            From a checkpoint of the full network it loads the weights of its
            width; a checkpoint of another network raises ValueError. Defaults
            to None for a slimmable network.
        out_indices (sequence[int] or int): As of MMPretrain's. Defaults to
            -1, the last layer.
        out_type (str): 'cls_token' or 'avg_featmap', (N, c), or 'featmap',
            (N, c, H, W). Defaults to 'cls_token'.
        **kwargs: Those of MMPretrain's VisionTransformer (``img_size``,
            ``patch_size``, ``drop_path_rate``, ``frozen_stages``, ...).

    Example:
        >>> from us3l_mm.models import SlimmableViT, at_width
        >>> net = SlimmableViT('tiny', slicing='embed', img_size=32,
        ...                    patch_size=4)
        >>> with at_width(net, 0.5):
        ...     print(net(torch.rand(2, 3, 32, 32))[-1].shape)
        torch.Size([2, 96])
    """

    arch_zoo = {**VisionTransformer.arch_zoo, **ARCHS}
    prefers_channels_last = False  # its one convolution has no overlap

    def __init__(
            self, arch: Union[str, dict] = 'small', slicing: str = 'input',
            width_range: Tuple[float, float] = (0.25, 1.0), divisor: int = 8,
            positions: str = 'learned', frozen_patch_embed: bool = False,
            init_style: str = 'mmpretrain', skip_dead: bool = True,
            width: Optional[float] = None, out_indices: Union[Sequence[int],
                                                              int] = -1,
            out_type: str = 'cls_token', **kwargs):
        if isinstance(arch, str) and arch.lower() not in self.arch_zoo:
            raise ValueError(
                f'arch is one of {sorted(self.arch_zoo)} or a dict, got '
                f'{arch!r}.')
        for name, value, allowed in (('slicing', slicing, SLICINGS),
                                     ('positions', positions, POSITIONS),
                                     ('init_style', init_style,
                                      INIT_STYLES), ('out_type', out_type,
                                                     OUT_TYPES)):
            if value not in allowed:
                raise ValueError(f'{name} is one of {allowed}, got '
                                 f'{value!r}.')
        for name in ('layer_cfgs', 'patch_cfg', 'layer_scale_init_value'):
            if kwargs.get(name):
                raise ValueError(
                    f'SlimmableViT brings its own layers, got {name}='
                    f'{kwargs[name]!r}; leave it out.')
        if kwargs.get('norm_cfg', {}).get('type', 'LN') != 'LN':
            raise ValueError("SlimmableViT has layer norms (type='LN'), got "
                             f'norm_cfg={kwargs["norm_cfg"]!r}.')
        indices = (out_indices if isinstance(out_indices, int) else
                   list(out_indices))  # MMPretrain writes into it
        super().__init__(arch, out_indices=indices, out_type=out_type,
                         **kwargs)
        self.depth = self.num_layers
        self.num_heads = self.arch_settings['num_heads']
        self.feedforward_channels = self.arch_settings['feedforward_channels']
        for name in ('embed_dims', 'feedforward_channels'):
            if getattr(self, name) % self.num_heads:
                raise ValueError(
                    f'arch.{name} is a multiple of its {self.num_heads} '
                    f'heads, got {getattr(self, name)}.')
        self.slicing, self.divisor = slicing, divisor
        self.width_range = check_width_range(width_range)
        self.positions, self.init_style = positions, init_style
        self._replace_layers()
        self.set_skip_dead(skip_dead)
        if positions == 'sincos':
            self.pos_embed.data.copy_(
                sincos_positions(
                    self.patch_resolution, self.embed_dims,
                    self.num_extra_tokens,
                    self.num_heads if slicing == 'embed' else None))
            self.pos_embed.requires_grad_(False)
        if frozen_patch_embed:
            self.patch_embed.requires_grad_(False)
        if width is not None:
            self.slice_to(width)

    def _replace_layers(self) -> None:
        """Put slimmable layers over the parameters of the plain ones."""
        narrows = self.slicing == 'embed'
        steps = self.num_heads if narrows else None
        linear = dict(slice_out=narrows, divisor=self.divisor, steps=steps,
                      cut_input=not narrows)
        for layer in self.layers:
            attention, ffn = layer.attn, layer.ffn
            qkv = _over(SlimmableQKV, attention.qkv, self.embed_dims,
                        self.num_heads, bias=attention.qkv.bias is not None,
                        **linear)
            layer.attn = SlimmableAttention(
                attention, qkv, _over_linear(attention.proj, **linear))
            ffn.layers[0][0] = _over_linear(ffn.layers[0][0], **linear)
            ffn.layers[1] = _over_linear(ffn.layers[1], **linear)
        if narrows:
            for module in list(self.modules()):
                for name, norm in module.named_children():
                    if isinstance(norm, nn.LayerNorm):
                        setattr(
                            module, name,
                            _over(SlimmableLayerNorm, norm, self.embed_dims,
                                  steps, eps=norm.eps))
            conv = self.patch_embed.projection
            self.patch_embed.projection = _over(
                SlimmableConv2d, conv, conv.in_channels, conv.out_channels,
                conv.kernel_size, conv.stride, slice_in=False, steps=steps,
                bias=conv.bias is not None)

    def set_skip_dead(self, skip: bool) -> None:
        """Whether to leave out what no layer reads (``slicing='input'``)."""
        self.skip_dead = skip and self.slicing == 'input'
        if self.slicing == 'embed':  # there is nothing of the kind
            return
        for layer in self.layers:
            fc1, fc2 = layer.ffn.layers[0][0], layer.ffn.layers[1]
            layer.attn.qkv.slice_out = fc1.slice_out = skip
            fc2.cut_input = not skip
            for changed in (layer.attn.qkv, fc1):
                changed.on_subnet()

    def init_weights(self) -> None:
        positions = self.pos_embed.data.clone()
        super().init_weights()
        if pretrained_cfg(self) is not None:
            return
        if self.init_style == 'mocov3':
            init_as_mocov3(self)
        if self.positions == 'sincos':  # MMPretrain draws learned ones
            self.pos_embed.data.copy_(positions)

    def on_slice(self, subnet: Subnet) -> None:
        dims = self.embed_dims = self.feature_channels(subnet)[-1]
        for name in ('cls_token', 'pos_embed'):
            tokens = getattr(self, name)
            if tokens is not None:
                setattr(
                    self, name,
                    nn.Parameter(tokens.data[..., :dims].clone(),
                                 tokens.requires_grad))
        if self.slicing == 'embed':
            self.num_heads = active_steps(self.num_heads, subnet.width,
                                          self.num_heads)
        first = self.layers[0].ffn.layers[0][0]
        self.feedforward_channels = first.out_features
        super().on_slice(subnet)

    def output_channels(self) -> Tuple[int, ...]:
        return (self.embed_dims, ) * len(self.out_indices)

    @property
    def feature_rounding(self) -> Tuple[dict, ...]:
        rounding = (dict(steps=self.num_heads)
                    if self.slicing == 'embed' else dict(slice_in=False))
        return (rounding, ) * len(self.out_indices)

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Outputs of ``out_indices`` for images (N, 3, H, W)."""
        x, resolution = self.patch_embed(x)
        c = x.shape[-1]
        if self.cls_token is not None:
            x = torch.cat([
                self.cls_token[..., :c].expand(x.shape[0], -1, -1), x], dim=1)
        x = self.drop_after_pos(x + resize_pos_embed(self.pos_embed[
            ..., :c], self.patch_resolution, resolution, self.interpolate_mode,
                                                     self.num_extra_tokens))
        x = self.pre_norm(x)
        outputs = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i == self.num_layers - 1 and self.final_norm:
                x = self.ln1(x)
            if i in self.out_indices:
                outputs.append(self._format_output(x, resolution))
        return tuple(outputs)


def _over(cls: type, layer: nn.Module, *args, **kwargs) -> nn.Module:
    """A ``cls`` with the parameters of ``layer``, and none of its own."""
    new = cls(*args, device='meta', **kwargs)
    for name, parameter in layer.named_parameters():
        setattr(new, name, parameter)
    return new.train(layer.training)


def _over_linear(linear: nn.Linear, **kwargs) -> SlimmableLinear:
    return _over(SlimmableLinear, linear, linear.in_features,
                 linear.out_features, bias=linear.bias is not None, **kwargs)
