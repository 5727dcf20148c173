# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The families of backbones that can be exported."""
from typing import Optional

from torch import nn

from us3l_mm.models.layers import Subnet, SubnetLike
from .family import Family, output_channels
from .gated_resnet import GatedResNetFamily
from .mobilenet_v2 import MobileNetV2Family
from .resnet import ResNetFamily
from .vit import ViTFamily

FAMILIES = (ResNetFamily(), GatedResNetFamily(), MobileNetV2Family(),
            ViTFamily())


def family_of(backbone: nn.Module) -> Family:
    """The family of ``backbone``; TypeError if it has none."""
    for family in FAMILIES:
        if isinstance(backbone, family.slimmable):
            return family
    known = sorted(cls.__name__ for family in FAMILIES
                   for cls in family.slimmable)
    raise TypeError(f'A {type(backbone).__name__} cannot be exported; these '
                    f'backbones can: {known}.')


def plain_arguments(backbone: nn.Module, subnet: SubnetLike) -> Optional[dict]:
    """The arguments of MMPretrain's class for ``backbone`` at ``subnet``.

    Returns:
        dict, optional: None if that class cannot have these channels, as each
        layer rounds its own. With 64 base channels, a ResNet has arguments at
        the multiples of 1/8 only.
    """
    return family_of(backbone).plain_arguments(backbone,
                                               Subnet.of(subnet).width)


__all__ = [
    'FAMILIES', 'Family', 'family_of', 'output_channels', 'plain_arguments']
