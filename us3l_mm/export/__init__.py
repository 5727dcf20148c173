# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from us3l_mm.models.backbones.slicing import slice_backbone, slice_network
from .families import plain_arguments
from .pruning import choose_channels, prune, pruned_ratio

__all__ = [
    'choose_channels', 'plain_arguments', 'prune', 'pruned_ratio',
    'slice_backbone', 'slice_network']
