# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .attention import QKV, SlimmableAttention, SlimmableQKV
from .conv import SlimmableConv2d
from .layer_norm import SlimmableLayerNorm
from .linear import LeadingLinear, SlimmableLinear
from .norm import (SlimmableBatchNorm, SlimmableBatchNorm1d,
                   SlimmableBatchNorm2d)
from .switchable_norm import (SwitchableBatchNorm, SwitchableBatchNorm1d,
                              SwitchableBatchNorm2d)
from .width import (FULL_WIDTH, KeepsOwnWidth, SlimmableLayer, active_channels,
                    active_steps, at_width, check_width, check_width_range,
                    make_divisible, set_width, slimmable_layers)

__all__ = [
    'FULL_WIDTH', 'QKV', 'KeepsOwnWidth', 'LeadingLinear',
    'SlimmableAttention', 'SlimmableBatchNorm', 'SlimmableBatchNorm1d',
    'SlimmableBatchNorm2d', 'SlimmableConv2d', 'SlimmableLayer',
    'SlimmableLayerNorm', 'SlimmableLinear', 'SlimmableQKV',
    'SwitchableBatchNorm', 'SwitchableBatchNorm1d', 'SwitchableBatchNorm2d',
    'active_channels', 'active_steps', 'at_width', 'check_width',
    'check_width_range', 'make_divisible', 'set_width', 'slimmable_layers'
]
