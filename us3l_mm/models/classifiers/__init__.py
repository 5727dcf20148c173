# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A pre-trained backbone, at one width or at several, learns labels."""
from .all_widths_classifier import AllWidthsClassifier
from .subnet_classifier import SubnetClassifier

__all__ = ['AllWidthsClassifier', 'SubnetClassifier']
