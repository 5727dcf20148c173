# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from us3l_mm.models.layers import SlimmableLayer, Subnet, SubnetLike
from us3l_mm.models.layers.norm import statistics_suffix
from us3l_mm.models.layers.subnet import missing_statistics

MISSING_STATISTICS = ('error', 'reset')
MEAN, VAR, COUNT = 'running_mean', 'running_var', 'num_batches_tracked'


class SlicingRecord:
    """What a network of a single width remembers of the full one.

    With it, a file of the full network can be loaded: its weights are sliced
    to the shapes of the sub-network, and the batch-norm statistics of the
    sub-network are picked.

    Args:
        network (nn.Module): The full network, before it is sliced.
        subnet (Subnet, float or str): The sub-network that remains.
        on_missing (str): What to do about a file without statistics for this
            sub-network: 'error', or 'reset' for those of a new layer.
            Defaults to 'error'.
    """

    def __init__(self, network: nn.Module, subnet: SubnetLike,
                 on_missing: str = 'error'):
        if on_missing not in MISSING_STATISTICS:
            raise ValueError(
                f'missing_statistics is one of {MISSING_STATISTICS}, got '
                f'{on_missing!r}.')
        self.subnet, self.on_missing = Subnet.of(subnet), on_missing
        self.full_shapes: Dict[str, Tuple[int, ...]] = {
            name: tuple(parameter.shape)
            for name, parameter in network.named_parameters()}
        layers = {
            name: layer for name, layer in network.named_modules()
            if isinstance(layer, SlimmableLayer)}
        # Of parameters of which a sub-network has more than leading rows.
        self.row_blocks = {
            f'{name}.{leaf}': blocks for name, layer in layers.items()
            if (blocks := layer.row_blocks(self.subnet.width)) is not None
            for leaf, _ in layer.named_parameters(recurse=False)}
        # Layers with private tensors, which get the keys of a plain layer.
        self.switchable = {
            name: layer for name, layer in layers.items() if layer.subnets}

    def slice_parameters(self, network: nn.Module,
                         state_dict: Dict[str, Tensor], prefix: str) -> None:
        """Slice the full network's parameters in ``state_dict``, in place.

        A tensor that has neither the full nor the sliced shape stays, for the
        check that follows to refuse.
        """
        for name, layer in self.switchable.items():
            layer.pick(state_dict, f'{prefix}{name}.', self.subnet)
        self._is_full = False
        for name, parameter in network.named_parameters():
            weights, shape = state_dict.get(prefix + name), parameter.shape
            if (weights is not None and weights.shape != shape
                    and tuple(weights.shape) == self.full_shapes.get(name)):
                state_dict[prefix + name] = cut(
                    weights, shape, self.row_blocks.get(name)).contiguous()
                self._is_full = True

    def pick_statistics(self, network: nn.Module,
                        state_dict: Dict[str, Tensor], prefix: str) -> None:
        """Leave the statistics of the sub-network in ``state_dict`` only.

        Raises:
            ValueError: If the file has none, unless they are to be reset.
        """
        absent: List[str] = []
        for name, norm in network.named_modules():
            if not isinstance(norm, _BatchNorm):
                continue
            stem = f'{prefix}{name}.'
            picked = self._pick(network, norm, state_dict, stem)
            if picked is None:
                if not absent:
                    measured = _measured(state_dict, stem)
                absent.append(name)
                picked = (torch.zeros_like(norm.running_mean),
                          torch.ones_like(norm.running_var), torch.tensor(0))
            for key in list(state_dict):
                if key.startswith(f'{stem}running_'):
                    del state_dict[key]
            for leaf, value in zip((MEAN, VAR, COUNT), picked):
                state_dict[stem + leaf] = value
        if absent and self.on_missing == 'error':
            raise ValueError(
                f'{missing_statistics(self.subnet, measured)} These are the '
                f'statistics of {len(absent)} norms of the file, such as '
                f'{absent[0]}. A file that tools/slice_checkpoint.py CKPT OUT '
                f'--width {self.subnet.width:g} --config CONFIG writes has '
                'them, too. Where all norms will be trained, '
                "missing_statistics='reset' lets them begin anew.")

    def _pick(self, network, norm, state_dict, stem) -> Optional[tuple]:
        """(mean, variance, count) of a norm, or None."""
        suffix = statistics_suffix(self.subnet)
        if suffix and f'{stem}{MEAN}{suffix}' in state_dict:
            return (state_dict[f'{stem}{MEAN}{suffix}'],
                    state_dict[f'{stem}{VAR}{suffix}'], torch.tensor(1))
        mean = state_dict.get(f'{stem}{MEAN}')
        if (mean is None or mean.shape != norm.running_mean.shape
                or (self._is_full and not self.switchable)):
            return None  # those of the full width fit no other
        count = state_dict.get(f'{stem}{COUNT}', torch.tensor(1))
        if count == 0 and all(
                tuple(parameter.shape) == self.full_shapes.get(name)
                for name, parameter in network.named_parameters()):
            return None  # the zeros and ones of a network never calibrated
        return mean, state_dict[f'{stem}{VAR}'], count


def cut(value: Tensor, shape: Sequence[int],
        blocks: Optional[List[Tuple[int, int]]] = None) -> Tensor:
    """The entries of a parameter that a sub-network uses.

    Args:
        value (Tensor): The parameter, or another tensor of its shape.
        shape (sequence[int]): The shape in the sliced network.
        blocks (list[tuple[int, int]], optional): The rows in use, where these
            are not the leading ones; see ``SlimmableLayer.row_blocks``.
            Defaults to None.
    """
    if blocks is not None:
        value = torch.cat([value[slice(*rows)] for rows in blocks])
    return value[tuple(map(slice, shape))]


def _measured(state_dict: Dict[str, Tensor], stem: str) -> List[Subnet]:
    """The sub-networks of which the file has statistics of a norm."""
    suffixes = [
        key[len(stem + MEAN):] for key in state_dict
        if key.startswith(stem + MEAN)]
    count = state_dict.get(f'{stem}{COUNT}', 1)
    return sorted((Subnet.of(suffix[1:] or 'full')
                   for suffix in suffixes if suffix or count != 0),
                  key=lambda subnet: subnet.width)
