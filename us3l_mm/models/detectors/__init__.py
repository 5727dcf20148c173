# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .all_widths_detector import AllWidths, all_widths_detector
from .subnet_detector import subnet_detector

__all__ = ['AllWidths', 'all_widths_detector', 'subnet_detector']
