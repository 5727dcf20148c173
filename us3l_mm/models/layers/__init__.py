# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .attention import QKV, SlimmableAttention, SlimmableQKV
from .channels import active_channels, active_steps, make_divisible
from .conv import SlimmableConv2d
from .gate import (GATED, ChannelGate, Gating, NoGate, SwitchableGate,
                   set_threshold)
from .gated_compute import GatedCompute, active_counts
from .layer_norm import SlimmableLayerNorm
from .linear import LeadingLinear, SlimmableLinear
from .modes import evaluation_mode
from .norm import (SlimmableBatchNorm, SlimmableBatchNorm1d,
                   SlimmableBatchNorm2d)
from .precision import at_least_single
from .shared_norm import SharedBatchNorm2d
from .subnet import (FULL, KeepsOwnSubnet, SlimmableLayer, Subnet, SubnetLike,
                     at, at_width, check_statistics, check_subnets,
                     check_width_range, has_statistics, set_subnet,
                     slimmable_layers, subnet_list, subnets_of)
from .sync_norm import set_sync
from .switchable_norm import (SwitchableBatchNorm, SwitchableBatchNorm1d,
                              SwitchableBatchNorm2d, keep_full_norms)

__all__ = [
    'FULL', 'GATED', 'QKV', 'ChannelGate', 'GatedCompute', 'Gating',
    'KeepsOwnSubnet', 'LeadingLinear', 'NoGate', 'SharedBatchNorm2d',
    'SlimmableAttention', 'SlimmableBatchNorm', 'SlimmableBatchNorm1d',
    'SlimmableBatchNorm2d', 'SlimmableConv2d', 'SlimmableLayer',
    'SlimmableLayerNorm', 'SlimmableLinear', 'SlimmableQKV', 'Subnet',
    'SubnetLike', 'SwitchableBatchNorm', 'SwitchableBatchNorm1d',
    'SwitchableBatchNorm2d', 'SwitchableGate', 'active_channels',
    'active_counts', 'active_steps', 'at', 'at_least_single', 'at_width',
    'check_statistics', 'check_subnets', 'check_width_range',
    'evaluation_mode', 'has_statistics', 'keep_full_norms', 'make_divisible',
    'set_subnet', 'set_sync', 'set_threshold', 'slimmable_layers',
    'subnet_list', 'subnets_of']
