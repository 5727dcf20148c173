# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Which ordinary ResNet a sub-network is."""
import inspect
from typing import Dict, Optional

from mmpretrain.models import ResNet, ResNet_CIFAR
from mmpretrain.models.backbones.resnet import get_expansion
from torch import nn

from us3l_mm.models.layers import SlimmableConv2d, active_channels

# Arguments of MMPretrain's (and MMDetection's) ResNet that change its layers.
SHAPING = ('stem_channels', 'base_channels', 'num_stages', 'strides',
           'dilations', 'style', 'deep_stem', 'avg_down')


def stock_class(backbone: nn.Module) -> type:
    """MMPretrain's class that ``backbone`` extends."""
    return ResNet_CIFAR if isinstance(backbone, ResNet_CIFAR) else ResNet


def backbone_arguments(backbone: nn.Module) -> dict:
    """The arguments that shape ``backbone``, those at their default left out.
    """
    defaults = inspect.signature(ResNet.__init__).parameters
    arguments = dict(depth=backbone.depth)
    for name in SHAPING:
        value, default = getattr(backbone, name), defaults[name].default
        if isinstance(default, tuple):
            value = tuple(value)
        if value != default:
            arguments[name] = value
    if 'num_stages' in arguments:  # the default asks for the fourth
        arguments['out_indices'] = (backbone.num_stages - 1, )
    if backbone.expansion != get_expansion(backbone.block):
        arguments['expansion'] = backbone.expansion
    first = next(layer for layer in backbone.modules()
                 if isinstance(layer, nn.Conv2d))
    if first.in_channels != defaults['in_channels'].default:
        arguments['in_channels'] = first.in_channels
    eps = (backbone.norm_cfg or {}).get('eps')
    if eps is not None:
        arguments['norm_cfg'] = dict(type='BN', eps=eps)
    return arguments


def plain_arguments(backbone: nn.Module, width: float) -> Optional[dict]:
    """Arguments of the stock ResNet that ``backbone`` is at ``width``.

    Returns:
        dict, optional: With ``base_channels`` and ``stem_channels``; None
        where each layer rounds on its own to channels that no stock ResNet
        has. With 64 base channels that is so off the k/8 grid.
    """
    arguments = backbone_arguments(backbone)
    for name in ('stem_channels', 'base_channels'):
        arguments[name] = active_channels(
            getattr(backbone, name), width, backbone.divisor)
    stock = stock_class(backbone)(**arguments)
    there = {name: (layer.in_channels, layer.out_channels)
             for name, layer in stock.named_modules()
             if isinstance(layer, nn.Conv2d)}
    here = {name: layer.active(width)
            for name, layer in backbone.named_modules()
            if isinstance(layer, SlimmableConv2d)}
    return arguments if here == there else None


def output_channels(network: nn.Module) -> Dict[str, int]:
    """Output channels of every convolution of a plain ``network``, by name."""
    return {name: layer.out_channels
            for name, layer in network.named_modules()
            if isinstance(layer, nn.Conv2d)}
