# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .slimmable_resnet import SlimmableResNet, SlimmableResNet_CIFAR
from .slimmable_vit import SlimmableViT

__all__ = ['SlimmableResNet', 'SlimmableResNet_CIFAR', 'SlimmableViT']
