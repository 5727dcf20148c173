# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Weights for timm's VisionTransformer.

With ``slicing='embed'``, a width is a network with fewer features. With
``slicing='input'``, it is written as the full network with zeros for the
weights of features that are not read: the outputs are the same, and so is the
cost of the full network.
"""
import re
from typing import Dict

from torch import Tensor, nn

from us3l_mm.models.layers import SlimmableLinear
from .artifact import Artifact, SlicedNetwork
from .bare_weights import cannot_hold, weights_for

NAMES = (('patch_embed.projection', 'patch_embed.proj'),
         ('ffn.layers.0.0', 'mlp.fc1'), ('ffn.layers.1', 'mlp.fc2'),
         ('layers', 'blocks'), ('pre_norm', 'norm_pre'))


def timm_vit(network: SlicedNetwork) -> Artifact:
    """Weights with timm's keys.

    Raises:
        ValueError: If timm's class cannot compute the same.
    """
    arguments = timm_arguments(network)
    weights, remark = network.plain.state_dict(), ''
    if not network.family.plain_arguments(network.backbone, network.width):
        weights = zero_filled(network.backbone, network.width)
        remark = '# The full network, with zeros for what is not read.\n'
    return weights_for(network, timm_keys(weights),
                       'timm.models.vision_transformer', 'VisionTransformer',
                       arguments, remark=remark)


def timm_arguments(network: SlicedNetwork) -> dict:
    """The arguments of timm's VisionTransformer."""
    backbone, plain = network.backbone, network.plain
    size, patch = backbone.img_size, backbone.patch_embed.projection
    if network.input_size != size[0] or size[0] != size[1]:
        raise ValueError(
            'timm cannot hold this network: its position embeddings are for '
            f'{size[0]} x {size[1]} pixels, got an input size of '
            f'{network.input_size}. Leave out --input-size, or use --format '
            'mmpretrain or onnx.')
    if backbone.out_type == 'avg_featmap' or not backbone.final_norm:
        raise cannot_hold(
            'timm', f'its class has no out_type={backbone.out_type!r} with '
            f'final_norm={backbone.final_norm}', 'mmpretrain or onnx')
    shape = network.family.arguments(backbone)['arch']
    pooling = (dict() if backbone.out_type == 'cls_token' else dict(
        global_pool='avg', fc_norm=False))
    return dict(img_size=size[0], patch_size=patch.kernel_size[0],
                in_chans=patch.in_channels, num_classes=0,
                embed_dim=plain.embed_dims, depth=plain.num_layers,
                num_heads=plain.num_heads,
                mlp_ratio=shape['feedforward_channels'] / shape['embed_dims'],
                qkv_bias=plain.layers[0].attn.qkv.bias is not None,
                class_token=plain.cls_token is not None, pre_norm=isinstance(
                    plain.pre_norm, nn.LayerNorm), **pooling)


def timm_keys(weights: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """A state dict of MMPretrain's VisionTransformer with timm's keys."""

    def rename(key: str) -> str:
        for ours, theirs in NAMES:
            key = key.replace(ours, theirs)
        return re.sub(r'^ln1\.', 'norm.',
                      re.sub(r'^(blocks\.\d+)\.ln(\d)', r'\1.norm\2', key))

    return {rename(key): value for key, value in weights.items()}


def zero_filled(backbone: nn.Module, width: float) -> Dict[str, Tensor]:
    """The full state dict of an input-sliced ``backbone`` for ``width``.

    Weights of features that are not read are zero. With them the stock class,
    which reads all features, computes the same.
    """
    weights = {
        key: value.clone() for key, value in backbone.state_dict().items()}
    for name, layer in backbone.named_modules():
        if isinstance(layer, SlimmableLinear):
            weights[f'{name}.weight'][:, layer.active(width)[0]:] = 0
    return weights
