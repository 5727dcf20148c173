# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The stock classes for sub-networks of a ResNet."""
from typing import Optional, Tuple, Type

from mmpretrain.models import ResNet, ResNet_CIFAR
from mmpretrain.models.backbones.resnet import get_expansion
from torch import nn

from us3l_mm.models.backbones import SlimmableResNet, SlimmableResNet_CIFAR
from us3l_mm.models.layers import active_channels
from .family import Family, non_default, same_channels

# Arguments of MMPretrain's (and MMDetection's) ResNet that change its layers.
SHAPING = ('stem_channels', 'base_channels', 'num_stages', 'strides',
           'dilations', 'style', 'deep_stem', 'avg_down')


class ResNetFamily(Family):
    """ResNets. With 64 base channels, the widths k/8 are stock networks."""

    name = 'ResNet'
    slimmable: Tuple[type, ...] = (SlimmableResNet, SlimmableResNet_CIFAR)
    mmdet_names = ('ResNet', )

    def stock_class(self, backbone: nn.Module) -> Type[ResNet]:
        return ResNet_CIFAR if isinstance(backbone, ResNet_CIFAR) else ResNet

    def arguments(self, backbone: nn.Module) -> dict:
        first = next(layer for layer in backbone.modules()
                     if isinstance(layer, nn.Conv2d))
        shaping = {name: getattr(backbone, name) for name in SHAPING}
        arguments = dict(
            depth=backbone.depth,
            **non_default(dict(shaping, in_channels=first.in_channels),
                          ResNet))
        if 'num_stages' in arguments:  # the default names the fourth
            arguments['out_indices'] = (backbone.num_stages - 1, )
        if backbone.expansion != get_expansion(backbone.block):
            arguments['expansion'] = backbone.expansion
        eps = (backbone.norm_cfg or {}).get('eps')
        if eps is not None:
            arguments['norm_cfg'] = dict(type='BN', eps=eps)
        return arguments

    def plain_arguments(self, backbone: nn.Module,
                        width: float) -> Optional[dict]:
        if backbone.depth not in self.stock_class(backbone).arch_settings:
            return None
        arguments = self.arguments(backbone)
        for name in ('stem_channels', 'base_channels'):
            arguments[name] = active_channels(getattr(backbone, name), width,
                                              backbone.divisor)
        stock = self.stock_class(backbone)(**arguments)
        return arguments if same_channels(backbone, width, stock) else None

    def map_channels(self, plain: nn.Module) -> Tuple[int, ...]:
        return tuple(
            getattr(plain, name)[-1].out_channels for name in plain.res_layers)

    def map_indices(self, plain: nn.Module) -> Tuple[int, ...]:
        return tuple(range(len(plain.res_layers)))
