# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .families import plain_arguments
from .slicing import slice_backbone, slice_network

__all__ = ['plain_arguments', 'slice_backbone', 'slice_network']
