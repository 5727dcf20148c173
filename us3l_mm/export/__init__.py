# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from us3l_mm.models.backbones.slicing import slice_backbone, slice_network
from .families import plain_arguments
from .norm_matching import match_norms
from .pruning import choose_channels, prune, pruned_ratio

__all__ = [
    'choose_channels', 'match_norms', 'plain_arguments', 'prune',
    'pruned_ratio', 'slice_backbone', 'slice_network']
