# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .gated_execution import ActiveChannels
from .gated_resnet import GatedResNet, GatedResNet_CIFAR
from .pruned_resnet import PrunedResNet, PrunedResNet_CIFAR
from .slimmable_mobilenet_v2 import (SlimmableMobileNetV2,
                                     SlimmableMobileNetV2_CIFAR)
from .slimmable_resnet import SlimmableResNet, SlimmableResNet_CIFAR
from .slimmable_vit import SlimmableViT

__all__ = [
    'ActiveChannels', 'GatedResNet', 'GatedResNet_CIFAR', 'PrunedResNet',
    'PrunedResNet_CIFAR', 'SlimmableMobileNetV2', 'SlimmableMobileNetV2_CIFAR',
    'SlimmableResNet', 'SlimmableResNet_CIFAR', 'SlimmableViT']
