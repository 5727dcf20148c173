# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .projector import FULL_WIDTH_NORM, SlimmableProjector
from .simple_fpn import SimpleFPN

__all__ = ['FULL_WIDTH_NORM', 'SimpleFPN', 'SlimmableProjector']
