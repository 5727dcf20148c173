# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Classifiers over a pre-trained backbone of one or of several widths."""
from .all_widths_classifier import AllWidthsClassifier
from .slimmable_classifier import SlimmableClassifier
from .subnet_classifier import SubnetClassifier

__all__ = ['AllWidthsClassifier', 'SlimmableClassifier', 'SubnetClassifier']
