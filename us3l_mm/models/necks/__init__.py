# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .projector import Predictor, SlimmableProjector
from .simple_fpn import SimpleFPN

__all__ = ['Predictor', 'SimpleFPN', 'SlimmableProjector']
