# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Batch normalisation of a network that runs at any width."""
from typing import List, Set

import torch
import torch.nn.functional as F
from mmengine.dist import get_world_size
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from us3l_mm.registry import MODELS
from .channels import active_channels
from .subnet import (FULL, SlimmableLayer, Subnet, SubnetLike,
                     missing_statistics)
from .sync_norm import SynchronisedNorm


def statistics_suffix(subnet: Subnet) -> str:
    """What follows ``running_mean`` in the keys of statistics of ``subnet``.

    Nothing for the full network, whose keys are those of a plain one, else
    the key of the sub-network: ``'_w0500000'`` for width 0.5.
    """
    return f'_{subnet.key}' if subnet.key else ''


class SlimmableBatchNorm(SlimmableLayer, _BatchNorm):
    """Batch norm over leading channels, with statistics per sub-network.

    * Training uses the statistics of the batch. No running statistics are
      tracked: an average over several widths would fit none of them.
    * Evaluation uses the statistics that were *measured* for the sub-network
      (:meth:`set_statistics`, called by the calibration), and refuses to run
      without them.
    * A training step discards measured statistics, since it changes the
      weights that they were measured with.

    The affine parameters are shared: ``weight[:c]``, ``bias[:c]``. Statistics
    of the full network are the buffers of a plain batch norm, those of width
    0.5 are ``running_mean_w0500000`` and ``running_var_w0500000``; both are in
    the state dict. Source: US3L, arXiv 2303.06870 (universally slimmable
    training and calibration as in US-Nets, 1903.05134).

    Args:
        num_features (int): Number of channels at full width.
        eps (float): Added to the variance. Defaults to 1e-5.
        affine (bool): Whether to learn scale and shift. Defaults to True.
        slice_channels (bool): Whether the channels narrow with the width;
            False inside US3L's projector. Defaults to True.
        divisor (int): Channels are rounded to multiples of it. Defaults to 8.
        ratio (int): Expand ratio to round by. Defaults to 1.
        sync (bool): Whether a batch has the statistics of all processes
            together. Defaults to False.
        momentum (float): Accepted for the configs of plain norms; there is no
            running average that it could apply to. Defaults to 0.1.

    Shapes: (N, c, ...) to the same.
    """

    plain_type: type

    def __init__(self, num_features: int, eps: float = 1e-5,
                 momentum: float = 0.1, affine: bool = True,
                 slice_channels: bool = True, divisor: int = 8, ratio: int = 1,
                 sync: bool = False):
        super().__init__(num_features, eps, momentum, affine)
        self.slice_channels, self.divisor = slice_channels, divisor
        self.ratio, self.sync = ratio, sync
        # On the host, so that asking for them never waits for the device.
        self._measured: Set[Subnet] = set()
        self.on_subnet()

    def active(self, width: float) -> int:
        """Number of channels at ``width``."""
        if not self.slice_channels:
            return self.num_features
        return active_channels(self.num_features, width, self.divisor,
                               self.ratio)

    def on_subnet(self) -> None:
        self.active_features = self.active(self.width)

    def measured_subnets(self) -> List[Subnet]:
        return sorted(self._measured, key=lambda subnet: subnet.width)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        c = self.active_features
        weight, bias = self.weight, self.bias
        if self.affine and c < self.num_features:
            weight, bias = weight[:c], bias[:c]
        if self.training:
            if self._measured and torch.is_grad_enabled():
                self.clear_statistics()
            if self.sync and get_world_size() > 1:
                return SynchronisedNorm.apply(x, weight, bias, self.eps)[0]
            return F.batch_norm(x, None, None, weight, bias, True, 0.0,
                                self.eps)
        mean, var = self.statistics(self.subnet)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps)

    def statistics(self, subnet: SubnetLike) -> tuple:
        """Measured (mean, variance) of ``subnet``, each of shape (c,).

        Raises:
            ValueError: If none were measured for it.
        """
        subnet = Subnet.of(subnet)
        if subnet not in self._measured:
            raise missing_statistics(subnet, self.measured_subnets())
        suffix = statistics_suffix(subnet)
        return (getattr(self, f'running_mean{suffix}'),
                getattr(self, f'running_var{suffix}'))

    @torch.no_grad()
    def set_statistics(self, subnet: SubnetLike, mean: Tensor,
                       var: Tensor) -> None:
        """Store ``mean`` and ``var`` of ``subnet``, each of shape (c,)."""
        subnet = Subnet.of(subnet)
        suffix, c = statistics_suffix(subnet), self.active(subnet.width)
        if mean.shape != (c, ) or var.shape != (c, ):
            raise ValueError(
                f'The statistics of {subnet} have {c} channels, got a mean of '
                f'shape {tuple(mean.shape)} and a variance of shape '
                f'{tuple(var.shape)}.')
        like = self.running_mean
        self.register_buffer(f'running_mean{suffix}', mean.to(like).clone())
        self.register_buffer(f'running_var{suffix}', var.to(like).clone())
        if subnet.is_full:
            self.num_batches_tracked.fill_(1)
        self._measured.add(subnet)

    def clear_statistics(self) -> None:
        """Discard the statistics of all sub-networks."""
        for subnet in self._measured:
            if not subnet.is_full:
                del self._buffers[f'running_mean_{subnet.key}']
                del self._buffers[f'running_var_{subnet.key}']
        self.reset_running_stats()
        self._measured.clear()

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Load, and keep exactly the statistics that the file has."""
        self.clear_statistics()
        stem = f'{prefix}running_mean'
        tracked = state_dict.get(f'{prefix}num_batches_tracked')
        for key in [key for key in state_dict if key.startswith(stem)]:
            suffix = key[len(stem):]
            # The file of a new network has means of 0 at full width, and its
            # counter tells; old plain networks have no counter.
            if not suffix and tracked is not None and tracked == 0:
                continue
            self._measured.add(Subnet.of(suffix[1:] or 'full'))
            for name in ('running_mean', 'running_var') if suffix else ():
                values = state_dict[f'{prefix}{name}{suffix}']
                self.register_buffer(name + suffix,
                                     self.running_mean.new_empty(values.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if tracked is None and FULL in self._measured:
            self.num_batches_tracked.fill_(1)  # so that our own file tells

    @torch.no_grad()
    def plain(self, subnet: SubnetLike) -> _BatchNorm:
        """A plain batch norm with weights and statistics of ``subnet``.

        Statistics that were never measured are those of a new layer.
        """
        subnet = Subnet.of(subnet)
        c = self.active(subnet.width)
        norm = self.plain_type(c, self.eps, self.momentum, self.affine)
        norm.to(self.running_mean)
        if self.affine:
            norm.weight.copy_(self.weight[:c])
            norm.bias.copy_(self.bias[:c])
        if subnet in self._measured:
            mean, var = self.statistics(subnet)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)
            norm.num_batches_tracked.fill_(1)
        return norm.train(self.training)

    def extra_repr(self) -> str:
        measured = ', '.join(map(str, self.measured_subnets()))
        return (f'{super().extra_repr()}, active={self.active_features}, '
                f'measured=[{measured}]')


# `_BatchNorm` is named as a base once more because MMEngine's initialisers
# and MMCV's layer names look at the direct bases of a class.
@MODELS.register_module()
class SlimmableBatchNorm1d(SlimmableBatchNorm, _BatchNorm):
    """:class:`SlimmableBatchNorm` of inputs (N, c) or (N, c, L)."""

    plain_type = nn.BatchNorm1d
    _check_input_dim = nn.BatchNorm1d._check_input_dim


@MODELS.register_module()
class SlimmableBatchNorm2d(SlimmableBatchNorm, _BatchNorm):
    """:class:`SlimmableBatchNorm` of inputs (N, c, H, W)."""

    plain_type = nn.BatchNorm2d
    _check_input_dim = nn.BatchNorm2d._check_input_dim
