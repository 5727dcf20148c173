# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Initial weights and fixed positions of vision transformers."""
from typing import Optional, Tuple

import torch
from mmpretrain.models.utils import build_2d_sincos_position_embedding
from torch import Tensor, nn

from us3l_mm.models.layers import QKV, SlimmableQKV

INIT_STYLES = ('mmpretrain', 'mocov3')


@torch.no_grad()
def init_as_mocov3(vit: nn.Module) -> None:
    """Glorot-uniform linear layers, zero biases; MoCo v3, arXiv 2104.02057.

    Query, key and value are three matrices, and the patch embedding is one.
    """
    projection = vit.patch_embed.projection
    for module in vit.modules():
        if isinstance(module, (SlimmableQKV, QKV)):
            qk, value = (module.active_parts
                         if isinstance(module, QKV) else module.parts(1.0))
            blocks = module.weight.split((qk, qk, value))
        elif isinstance(module, nn.Linear):
            blocks = [module.weight]
        elif module is projection:
            blocks = [module.weight.flatten(1)]
        else:
            continue
        for block in blocks:
            nn.init.xavier_uniform_(block)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if vit.cls_token is not None:
        nn.init.normal_(vit.cls_token, std=1e-6)


def sincos_positions(resolution: Tuple[int, int], embed_dims: int,
                     extra_tokens: int, heads: Optional[int] = None) -> Tensor:
    """Fixed 2-D positions (1, extra + rows * columns, embed_dims).

    MMPretrain's, as in MoCo v3: sine and cosine of the one coordinate, then
    of the other, each of falling frequencies; extra tokens have zeros. The
    leading half knows one coordinate alone. So with ``heads``, of which
    leading ones are to do without the rest, frequencies are dealt out to them
    like cards: each head has every fourth kind of its own frequencies.

    Raises:
        ValueError: if features do not fall into four kinds.
    """
    parts = embed_dims // (heads or 1)
    if parts % 4:
        raise ValueError(
            "positions='sincos' are of four kinds, so that the "
            f'{"features of a head" if heads else "embed_dims"} are a '
            f'multiple of 4, got {parts}.')
    positions = build_2d_sincos_position_embedding(resolution, embed_dims,
                                                   cls_token=False)
    if heads:
        # (kind, frequency = round of dealing * heads + head)
        kinds = positions.view(1, -1, 4, parts // 4, heads)
        positions = kinds.permute(0, 1, 4, 2, 3).flatten(2)
    extra = positions.new_zeros(1, extra_tokens, embed_dims)
    return torch.cat([extra, positions], dim=1)
