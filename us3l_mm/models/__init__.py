# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .augmentation import BatchAugmentation
from .backbones import (ActiveChannels, GatedResNet, GatedResNet_CIFAR,
                        PrunedResNet, PrunedResNet_CIFAR, SlimmableMobileNetV2,
                        SlimmableMobileNetV2_CIFAR, SlimmableResNet,
                        SlimmableResNet_CIFAR, SlimmableViT)
from .classifiers import (AllWidthsClassifier, SlimmableClassifier,
                          SubnetClassifier)
from .detectors import all_widths_detector, subnet_detector
from .heads import (FeatureDistiller, MoCoV2Contrast, MoCoV3Contrast, PairHead,
                    PredictionHead, RotationHead, SimCLRContrast,
                    SwitchableLinearHead)
from .layers import (SlimmableBatchNorm1d, SlimmableBatchNorm2d,
                     SlimmableConv2d, SlimmableLinear, Subnet,
                     SwitchableBatchNorm1d, SwitchableBatchNorm2d, at,
                     at_width, make_divisible, set_subnet, subnets_of)
from .losses import (BarlowTwinsLoss, ComputeBudget, GroupDecay, InfoNCELoss,
                     MoCoV3Loss, SimilarityDistillation, VICRegLoss)
from .necks import Predictor, SlimmableProjector
from .selfsup import (DenseGatedSSL, MultiPassSSL, Pass, Plan, SlimCLR,
                      US3LAlgorithm)

__all__ = [
    'ActiveChannels', 'AllWidthsClassifier', 'BarlowTwinsLoss',
    'BatchAugmentation', 'ComputeBudget', 'DenseGatedSSL', 'FeatureDistiller',
    'GatedResNet', 'GatedResNet_CIFAR', 'GroupDecay', 'InfoNCELoss',
    'MoCoV2Contrast', 'MoCoV3Contrast', 'MoCoV3Loss', 'MultiPassSSL',
    'PairHead', 'Pass', 'Plan', 'PredictionHead', 'Predictor', 'PrunedResNet',
    'PrunedResNet_CIFAR', 'RotationHead', 'SimCLRContrast',
    'SimilarityDistillation', 'SlimCLR', 'SlimmableBatchNorm1d',
    'SlimmableBatchNorm2d', 'SlimmableClassifier', 'SlimmableConv2d',
    'SlimmableLinear', 'SlimmableMobileNetV2', 'SlimmableMobileNetV2_CIFAR',
    'SlimmableProjector', 'SlimmableResNet', 'SlimmableResNet_CIFAR',
    'SlimmableViT', 'Subnet', 'SubnetClassifier', 'SwitchableBatchNorm1d',
    'SwitchableBatchNorm2d', 'SwitchableLinearHead', 'US3LAlgorithm',
    'VICRegLoss', 'all_widths_detector', 'at', 'at_width', 'make_divisible',
    'set_subnet', 'subnet_detector', 'subnets_of']
