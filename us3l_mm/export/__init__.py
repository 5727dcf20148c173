# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from us3l_mm.models.backbones.slicing import slice_backbone, slice_network
from .families import plain_arguments

__all__ = ['plain_arguments', 'slice_backbone', 'slice_network']
