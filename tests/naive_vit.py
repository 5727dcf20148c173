# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A sliced vision transformer written out, on dictionaries of tensors.

Nothing is left out as dead, and no kernel is fused: this is the definition,
what a layer with a narrow input writes included.
"""
import math

import torch
from naive import NaiveTrainer, channels, mlp

ARCH = dict(embed_dims=32, num_layers=4, num_heads=4, feedforward_channels=96)


def whole_heads(heads, width):
    """The nearest number, one up where that loses over 10 %; at least 1."""
    exact = heads * width
    nearest = max(1, math.floor(exact + 0.5))
    return min(heads, nearest + 1 if nearest < 0.9 * exact else nearest)


def layer_norm(x, params, name):
    d = x.shape[-1]
    centred = x - x.mean(-1, keepdim=True)
    y = centred / ((centred**2).mean(-1, keepdim=True) + 1e-6).sqrt()
    return y * params[f'{name}.weight'][:d] + params[f'{name}.bias'][:d]


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def attention(y, params, name, heads, kept, read, written, projected):
    """``kept`` of ``heads`` heads on ``read`` features; the projection reads
    ``projected`` features of all heads and writes ``written``."""
    weight = params[f'{name}.qkv.weight']
    dims = weight.shape[1]
    weight = weight.view(3, heads, -1, dims)[:, :kept, :, :read]
    bias = params[f'{name}.qkv.bias'].view(3, heads, -1)[:, :kept]
    q, k, v = torch.einsum('nlc,thec->tnhle', y[..., :read], weight) \
        + bias[:, None, :, None]
    scores = torch.einsum('nhie,nhje->nhij', q, k) / math.sqrt(q.shape[-1])
    share = torch.exp(scores)
    share = share / share.sum(-1, keepdim=True)
    z = torch.einsum('nhij,nhje->nihe', share, v).flatten(2)
    return (z[..., :projected]
            @ params[f'{name}.proj.weight'][:written, :projected].T +
            params[f'{name}.proj.bias'][:written])


def vit(images, params, width, slicing, heads, prefix=''):
    """The class token (N, c) of the final norm."""
    params = {
        k[len(prefix):]: v for k, v in params.items() if k.startswith(prefix)}
    dims = params['cls_token'].shape[-1]
    narrows = slicing == 'embed'
    kept = whole_heads(heads, width) if narrows else heads
    d = kept * (dims // heads)  # the residual stream
    read = d if narrows else channels(dims, width)
    weight = params['patch_embed.projection.weight'][:d]
    side = weight.shape[-1]
    patches = images.unfold(2, side, side).unfold(3, side, side)
    x = torch.einsum('ncijkl,dckl->nijd', patches, weight).flatten(1, 2)
    x = x + params['patch_embed.projection.bias'][:d]
    x = torch.cat([params['cls_token'][..., :d].expand(len(x), 1, d), x], 1)
    x = x + params['pos_embed'][..., :d]
    i = 0
    while f'layers.{i}.ln1.weight' in params:
        name = f'layers.{i}'
        x = x + attention(layer_norm(x, params, f'{name}.ln1'), params,
                          f'{name}.attn', heads, kept, read, d, read)
        first, second = (f'{name}.ffn.layers.{j}' for j in ('0.0', '1'))
        hidden = params[f'{first}.weight'].shape[0]
        units = hidden * kept // heads
        used = units if narrows else channels(hidden, width)
        y = layer_norm(x, params, f'{name}.ln2')
        y = gelu(y[..., :read] @ params[f'{first}.weight'][:units, :read].T +
                 params[f'{first}.bias'][:units])
        x = x + (y[..., :used] @ params[f'{second}.weight'][:d, :used].T +
                 params[f'{second}.bias'][:d])
        i += 1
    return layer_norm(x, params, 'ln1')[:, 0]


class NaiveViTTrainer(NaiveTrainer):
    """US3L on such a transformer, without dead parts left out."""

    def __init__(self, *args, slicing, **kwargs):
        super().__init__(*args, **kwargs)
        self.slicing = slicing

    def encode(self, params, view, width):
        features = vit(view, params, width, self.slicing, ARCH['num_heads'],
                       'backbone.')
        return [features[..., None, None]], mlp(features, params, 'neck.', 3,
                                                self.last_norm)


# Sizes by formula --------------------------------------------------------


def count(arch, width, slicing, tokens, patch_pixels, dead=False):
    """(parameters, multiply-accumulates) of one image.

    ``dead``: with ``slicing='input'``, count all that is written.
    """
    dims, heads, hidden = (arch[k] for k in ('embed_dims', 'num_heads',
                                             'feedforward_channels'))
    head = dims // heads
    if slicing == 'embed':
        kept = whole_heads(heads, width)
        d = read = value = kept * head
        units = used = hidden * kept // heads
    else:
        d, read, used = dims, channels(dims, width), channels(hidden, width)
        value, units = (dims, hidden) if dead else (read, used)
        kept = math.ceil(value / head)
    qk = kept * head
    rows = 2 * qk + value
    layer = ((rows * read + rows) + (d * read + d) + (units * read + units) +
             (d * used + d) + 4 * d)
    products = rows * read + d * read + units * read + d * used
    # Scores, and their use on the values of the heads.
    pairs = 2 * tokens * tokens * qk
    params = (d * patch_pixels + d) + d + tokens * d + 2 * d
    macs = (tokens - 1) * d * patch_pixels
    return (params + arch['num_layers'] * layer,
            macs + arch['num_layers'] * (tokens * products + pairs))
