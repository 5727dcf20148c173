# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The stock classes for what remains of a gated ResNet."""
from typing import Optional

from mmpretrain.models import ResNet_CIFAR
from torch import nn

from us3l_mm.models.backbones import (GatedResNet, GatedResNet_CIFAR,
                                      PrunedResNet, PrunedResNet_CIFAR)
from .resnet import ResNetFamily


class GatedResNetFamily(ResNetFamily):
    """Gated ResNets in dense mode, and pruned ones.

    Dense mode is a stock network, unless the stem of a GatedResNet_CIFAR is
    padded by other than 1 pixel. What else remains is a PrunedResNet.
    """

    name = 'GatedResNet'
    slimmable = (GatedResNet, GatedResNet_CIFAR, PrunedResNet,
                 PrunedResNet_CIFAR)

    def arguments(self, backbone: nn.Module) -> dict:
        arguments = super().arguments(backbone)
        if isinstance(backbone, PrunedResNet | PrunedResNet_CIFAR):
            if backbone.mid_channels != backbone.full_channels:
                arguments['mid_channels'] = backbone.mid_channels
        padding, = set(backbone.conv1.padding)
        if isinstance(backbone, ResNet_CIFAR) and padding != 1:
            arguments['stem_padding'] = padding
        return arguments

    def plain_arguments(self, backbone: nn.Module,
                        width: float) -> Optional[dict]:
        arguments = self.arguments(backbone)
        if 'mid_channels' in arguments or 'stem_padding' in arguments:
            return None
        return dict(arguments, stem_channels=backbone.stem_channels,
                    base_channels=backbone.base_channels)

    def own_arguments(self, backbone: nn.Module, width: float) -> dict:
        name = self.stock_class(backbone).__name__
        return dict(type=f'us3l_mm.Pruned{name}', **self.arguments(backbone))

    def architecture(self, backbone: nn.Module) -> dict:
        if self.plain_arguments(backbone, 1.0) is None:
            return self.own_arguments(backbone, 1.0)
        return super().architecture(backbone)
