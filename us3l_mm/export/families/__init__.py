# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""One file per kind of backbone."""
from typing import Optional

from torch import nn

from .family import Family, choose, output_channels
from .mobilenet_v2 import MobileNetV2Family
from .resnet import ResNetFamily
from .vit import ViTFamily

FAMILIES = (ResNetFamily(), MobileNetV2Family(), ViTFamily())


def family_of(backbone: nn.Module) -> Family:
    """What the export knows of ``backbone``; TypeError if nothing."""
    return choose(FAMILIES, backbone)


def plain_arguments(backbone: nn.Module, width: float) -> Optional[dict]:
    """Arguments of MMPretrain's class that ``backbone`` is at ``width``.

    None where that class cannot have these channels, as each layer rounds on
    its own; for a ResNet of 64 base channels that is so off the k/8 grid.
    """
    return family_of(backbone).plain_arguments(backbone, width)


__all__ = [
    'FAMILIES', 'Family', 'family_of', 'output_channels', 'plain_arguments'
]
