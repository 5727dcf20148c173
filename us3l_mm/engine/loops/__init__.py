# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .width_val_loop import WidthTestLoop, WidthValLoop

__all__ = ['WidthTestLoop', 'WidthValLoop']
