# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .lars import LARS

__all__ = ['LARS']
