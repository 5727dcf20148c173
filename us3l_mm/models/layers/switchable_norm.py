# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import itertools
import re
from typing import Dict, Iterable, List, Optional, Sequence

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from us3l_mm.registry import MODELS
from .channels import active_channels
from .subnet import (FULL, NAME, SlimmableLayer, Subnet, SubnetLike,
                     subnet_list)
from .sync_norm import SynchronisedNorm


class SwitchableBatchNorm(SlimmableLayer, _BatchNorm):
    """A private batch norm for each sub-network of a fixed list.

    Affine parameters and running statistics are private, so every sub-network
    keeps ordinary running statistics and needs no calibration; the price is
    that no others can run. The norm of the full network is this module itself
    and has the keys of a plain one; the norm of width 0.5 is its child
    ``w0500000``. Source: slimmable networks, arXiv 1812.08928; also SlimCLR,
    2209.15525, and dense + gated SSL, 2301.09164.

    Args:
        num_features (int): Number of channels at full width.
        subnets (sequence): The sub-networks that can run.
        divisor (int): Channels are rounded to multiples of it. Defaults to 8.
        ratio (int): Expand ratio to round by. Defaults to 1.
        slice_channels (bool): Whether the channels narrow with the width.
            Defaults to True.
        sync (bool): Whether a batch has the statistics of all processes
            together. Defaults to False.
        **kwargs: Arguments of the plain batch norm (``eps``, ``momentum``,
            ``affine``, ...).

    Shapes: (N, c, ...) to the same.
    """

    plain_type: type

    def __init__(self, num_features: int, subnets: Sequence[SubnetLike],
                 divisor: int = 8, ratio: int = 1, slice_channels: bool = True,
                 sync: bool = False, **kwargs):
        subnets = subnet_list(subnets)
        own = {} if FULL in subnets else dict(affine=False,
                                              track_running_stats=False)
        super().__init__(num_features, **{**kwargs, **own})
        self.subnets, self.sync = subnets, sync
        self.slice_channels = slice_channels
        self.on_subnet()
        for subnet in subnets:
            if not subnet.is_full:
                self.add_module(
                    subnet.key,
                    self.plain_type(
                        active_channels(num_features, subnet.width, divisor,
                                        ratio)
                        if slice_channels else num_features, **kwargs))

    def on_subnet(self) -> None:
        # Every layer starts with the full network; running it needs a norm.
        listed = self.subnet in self.subnets
        if not (listed or self.subnet.is_full):
            self.of(self.subnet)
        self._key: Optional[str] = self.subnet.key if listed else None

    def of(self, subnet: Subnet) -> _BatchNorm:
        """The norm of ``subnet``, which is this module for the full one."""
        if subnet not in self.subnets:
            raise ValueError(
                f'There is no batch norm of its own for {subnet}: this '
                f'network was built for {_names(self.subnets)}. Use one of '
                'them, list it in norm_cfg.subnets, or use '
                'SlimmableBatchNorm, which runs at any width.')
        return self if subnet.is_full else self._modules[subnet.key]

    def forward(self, x: Tensor) -> Tensor:
        if self._key is None:
            self.of(self.subnet)
        norm = self._modules[self._key] if self._key else self
        if norm.training and self.sync and get_world_size() > 1:
            return synchronised(norm, x)
        return super().forward(x) if norm is self else norm(x)

    @torch.no_grad()
    def set_statistics(self, subnet: SubnetLike, mean: Tensor,
                       var: Tensor) -> None:
        """Put ``mean`` and ``var`` (c,) in place of what training tracked."""
        norm = self.of(Subnet.of(subnet))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)

    @torch.no_grad()
    def plain(self, subnet: SubnetLike) -> _BatchNorm:
        """A copy of the batch norm of ``subnet``, as a plain layer."""
        chosen = self.of(Subnet.of(subnet))
        norm = self.plain_type(chosen.num_features, chosen.eps,
                               chosen.momentum, chosen.affine,
                               chosen.track_running_stats)
        own = {
            name: value.clone() for name, value in chosen.state_dict().items()
            if '.' not in name}  # not those of the other norms
        norm.load_state_dict(own, assign=True)
        return norm.train(self.training)

    def pick(self, state_dict: Dict[str, Tensor], prefix: str,
             subnet: Subnet) -> None:
        self._rename(state_dict, prefix)
        owners = self._owners(state_dict, prefix)
        if owners.keys() <= {''}:  # the file of a network of one width
            return
        self._check_list(owners, prefix)
        picked = {
            key.rpartition('.')[2]: state_dict[key]
            for key in owners[subnet.key]}
        for key in itertools.chain.from_iterable(owners.values()):
            del state_dict[key]
        for leaf, value in picked.items():
            state_dict[prefix + leaf] = value

    def adapt_file(self, state_dict: Dict[str, Tensor], prefix: str) -> None:
        """Rename the keys of older files, in place; refuse another list.

        Raises:
            ValueError: If the file is of another list of sub-networks.
        """
        self._rename(state_dict, prefix)
        owners = self._owners(state_dict, prefix)
        if owners:
            self._check_list(owners, prefix)

    def _rename(self, state_dict: Dict[str, Tensor], prefix: str) -> None:
        # Older files number the norms from the widest on, and do not name
        # their widths: only the number of norms can be compared.
        numbered = re.compile(re.escape(prefix) + r'norms\.(\d+)\.(\w+)')
        old = [
            found for found in map(numbered.fullmatch, list(state_dict))
            if found]
        count = len({found[1] for found in old})
        if old and count != len(self.subnets):
            raise ValueError(
                f'The file has {count} batch norms under {prefix}norms, and '
                f'this network has {len(self.subnets)}, those of '
                f'{_names(self.subnets)}. Build it for the list of the file.')
        for found in old:
            key = self.subnets[int(found[1])].key
            owner = f'{prefix}{key}.' if key else prefix
            state_dict[owner + found[2]] = state_dict.pop(found[0])

    @staticmethod
    def _owners(state_dict: Dict[str, Tensor],
                prefix: str) -> Dict[str, List[str]]:
        """The keys of the file under ``prefix``, by the key of their norm."""
        owners: Dict[str, List[str]] = {}
        for key in state_dict:
            owner = key[len(prefix):].rpartition('.')[0]
            if key.startswith(prefix) and NAME.fullmatch(owner):
                owners.setdefault(owner, []).append(key)
        return owners

    def _check_list(self, owners: Iterable[str], prefix: str) -> None:
        theirs = subnet_list(owner or FULL for owner in owners)
        if theirs != self.subnets:
            raise ValueError(
                f'The file has batch norms for {_names(theirs)}, and this '
                f'network was built for {_names(self.subnets)} ({prefix}...). '
                'Build it for the list of the file (norm_cfg.subnets), or use '
                'a file of the same list.')

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        self.adapt_file(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, subnets={_names(self.subnets)}'


def keep_full_norms(network: nn.Module) -> None:
    """Drop the private norms of all sub-networks but the full one, in place.
    """
    for norm in network.modules():
        if isinstance(norm, SwitchableBatchNorm):
            for subnet in norm.subnets:
                norm._modules.pop(subnet.key, None)
            norm.subnets = [FULL]


def _names(subnets: Iterable[Subnet]) -> str:
    return f'[{", ".join(map(str, subnets))}]'


def synchronised(norm: _BatchNorm, x: Tensor) -> Tensor:
    """``norm(x)`` by the statistics of all processes, which it tracks."""
    y, mean, var = SynchronisedNorm.apply(x, norm.weight, norm.bias, norm.eps)
    if norm.track_running_stats:
        norm.running_mean.lerp_(mean.to(norm.running_mean), norm.momentum)
        norm.running_var.lerp_(var.to(norm.running_var), norm.momentum)
        norm.num_batches_tracked.add_(1)
    return y


# `_BatchNorm` is named as a base once more because MMEngine's initialisers
# and MMCV's layer names look at the direct bases of a class.
@MODELS.register_module()
class SwitchableBatchNorm1d(SwitchableBatchNorm, _BatchNorm):
    """:class:`SwitchableBatchNorm` of inputs (N, c) or (N, c, L)."""

    plain_type = nn.BatchNorm1d
    _check_input_dim = nn.BatchNorm1d._check_input_dim


@MODELS.register_module()
class SwitchableBatchNorm2d(SwitchableBatchNorm, _BatchNorm):
    """:class:`SwitchableBatchNorm` of inputs (N, c, H, W)."""

    plain_type = nn.BatchNorm2d
    _check_input_dim = nn.BatchNorm2d._check_input_dim
