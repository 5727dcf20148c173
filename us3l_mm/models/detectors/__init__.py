# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .subnet_detector import subnet_detector

__all__ = ['subnet_detector']
