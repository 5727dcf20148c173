# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .backbones import (SlimmableMobileNetV2, SlimmableMobileNetV2_CIFAR,
                        SlimmableResNet, SlimmableResNet_CIFAR, SlimmableViT)
from .classifiers import AllWidthsClassifier, SubnetClassifier
from .detectors import all_widths_detector, subnet_detector
from .heads import FeatureDistiller, SwitchableLinearHead
from .layers import (SlimmableBatchNorm1d, SlimmableBatchNorm2d,
                     SlimmableConv2d, SlimmableLinear, SwitchableBatchNorm1d,
                     SwitchableBatchNorm2d, at_width, make_divisible,
                     set_width)
from .losses import GroupRegulariser, InfoNCELoss, MoCoV3Loss
from .necks import SlimmableProjector
from .selfsup import Plan, Subnet, US3LAlgorithm

__all__ = [
    'AllWidthsClassifier', 'FeatureDistiller', 'GroupRegulariser',
    'InfoNCELoss', 'MoCoV3Loss', 'Plan', 'SlimmableBatchNorm1d',
    'SlimmableBatchNorm2d', 'SlimmableConv2d', 'SlimmableLinear',
    'SlimmableMobileNetV2', 'SlimmableMobileNetV2_CIFAR', 'SlimmableProjector',
    'SlimmableResNet', 'SlimmableResNet_CIFAR', 'SlimmableViT', 'Subnet',
    'SubnetClassifier', 'SwitchableBatchNorm1d', 'SwitchableBatchNorm2d',
    'SwitchableLinearHead', 'US3LAlgorithm', 'all_widths_detector', 'at_width',
    'make_divisible', 'set_width', 'subnet_detector'
]
