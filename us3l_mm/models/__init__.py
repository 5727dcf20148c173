# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .backbones import SlimmableResNet, SlimmableResNet_CIFAR
from .heads import FeatureDistiller
from .layers import (SlimmableBatchNorm1d, SlimmableBatchNorm2d,
                     SlimmableConv2d, SlimmableLinear, SwitchableBatchNorm1d,
                     SwitchableBatchNorm2d, at_width, make_divisible,
                     set_width)
from .losses import GroupRegulariser, InfoNCELoss
from .necks import SlimmableProjector
from .selfsup import Plan, Subnet, US3LAlgorithm

__all__ = [
    'FeatureDistiller', 'GroupRegulariser', 'InfoNCELoss', 'Plan',
    'SlimmableBatchNorm1d', 'SlimmableBatchNorm2d', 'SlimmableConv2d',
    'SlimmableLinear', 'SlimmableProjector', 'SlimmableResNet',
    'SlimmableResNet_CIFAR', 'Subnet', 'SwitchableBatchNorm1d',
    'SwitchableBatchNorm2d', 'US3LAlgorithm', 'at_width', 'make_divisible',
    'set_width'
]
