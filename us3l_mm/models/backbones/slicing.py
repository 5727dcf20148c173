# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""From a slimmable network to an ordinary one of a single width."""
from typing import Dict, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from us3l_mm.models.layers import (KeepsOwnSubnet, SlimmableLayer, Subnet,
                                   SubnetLike, slimmable_layers)
from us3l_mm.models.layers.norm import statistics_suffix

MISSING_STATISTICS = ('error', 'reset')


def slice_layers(module: nn.Module, subnet: SubnetLike) -> None:
    """Replace the slimmable layers under ``module`` in place.

    Each becomes the plain layer that its ``plain(subnet)`` returns; a frozen
    one stays frozen. A module with a method ``on_slice(width)`` is told when
    its layers have been replaced. A teacher is not reached
    (:class:`KeepsOwnSubnet`).
    """
    plain = plain_layers(module, subnet)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if child in plain:
                setattr(parent, name, plain[child])
    tell_of_slicing(module, subnet)


def plain_layers(module: nn.Module,
                 subnet: SubnetLike) -> Dict[nn.Module, nn.Module]:
    """The ordinary layer that each slimmable one under ``module`` becomes."""
    plain = {}
    for layer in slimmable_layers(module):
        if layer not in plain:  # a layer may sit in two places
            frozen = [not p.requires_grad for p in layer.parameters()]
            plain[layer] = layer.plain(subnet).requires_grad_(
                not frozen or not all(frozen))
    return plain


def tell_of_slicing(module: nn.Module, subnet: SubnetLike) -> None:
    """Call ``on_slice`` of all modules that were cut."""
    if isinstance(module, KeepsOwnSubnet):
        return
    for child in module.children():
        tell_of_slicing(child, subnet)
    if hasattr(module, 'on_slice'):
        module.on_slice(Subnet.of(subnet).width)


class SlicingRecord:
    """What a narrow network remembers of the full one that it comes from.

    With it, a file of the full network can be loaded: its weights are cut to
    the shapes of the narrow one, and the statistics of the width are picked.

    Args:
        network (nn.Module): The full network, before it is cut.
        subnet (Subnet): The sub-network that it will be cut to.
        missing_statistics (str): What to do about a file without statistics
            for this width: 'error', or 'reset' for those of a new layer.
            Defaults to 'error'.
    """

    def __init__(self, network: nn.Module, subnet: SubnetLike,
                 missing_statistics: str = 'error'):
        if missing_statistics not in MISSING_STATISTICS:
            raise ValueError(
                f'missing_statistics is one of {MISSING_STATISTICS}, got '
                f'{missing_statistics!r}.')
        self.subnet = Subnet.of(subnet)
        width = self.subnet.width
        self.missing_statistics = missing_statistics
        self.full_shapes: Dict[str, Tuple[int, ...]] = {
            name: tuple(parameter.shape)
            for name, parameter in network.named_parameters()
        }
        # Of parameters that are not cut to their leading rows.
        self.row_blocks = {
            f'{name}.{leaf}': layer.row_blocks(width)
            for name, layer in network.named_modules()
            if isinstance(layer, SlimmableLayer)
            and layer.row_blocks(width) is not None
            for leaf, _ in layer.named_parameters(recurse=False)
        }
        # Layers whose private tensors get the keys of plain ones.
        self.switchable = {
            name: layer
            for name, layer in network.named_modules()
            if isinstance(layer, SlimmableLayer) and layer.subnets
        }

    def slice_parameters(self, network: nn.Module, state_dict: Dict[str, Tensor],
                       prefix: str) -> None:
        """Slice the full network's parameters in ``state_dict``, in place.

        A tensor that has neither the full nor the narrow shape stays, for the
        check that follows to refuse.
        """
        for name, layer in self.switchable.items():
            layer.pick(state_dict, f'{prefix}{name}.', self.subnet)
        self._is_full = False
        for name, parameter in network.named_parameters():
            weights, shape = state_dict.get(prefix + name), parameter.shape
            if (weights is not None and weights.shape != shape
                    and tuple(weights.shape) == self.full_shapes.get(name)):
                if name in self.row_blocks:
                    weights = torch.cat([
                        weights[slice(*rows)] for rows in self.row_blocks[name]
                    ])
                leading = tuple(slice(size) for size in shape)
                state_dict[prefix + name] = weights[leading].contiguous()
                self._is_full = True

    def pick_statistics(self, network: nn.Module,
                        state_dict: Dict[str, Tensor], prefix: str) -> None:
        """Leave the statistics of this width in ``state_dict``, no others.

        Raises:
            ValueError: if there are none, unless they are to be reset.
        """
        norms = {
            prefix + name: module
            for name, module in network.named_modules()
            if isinstance(module, _BatchNorm)
        }
        absent = []
        for stem, norm in norms.items():
            picked = self._pick(network, state_dict, stem)
            for key in [
                    key for key in state_dict
                    if key.startswith(f'{stem}.running_')
            ]:
                del state_dict[key]
            if picked is None:
                absent.append(stem)
                picked = (torch.zeros_like(norm.running_mean),
                          torch.ones_like(norm.running_var), torch.tensor(0))
            for leaf, value in zip(
                ('running_mean', 'running_var', 'num_batches_tracked'),
                    picked):
                state_dict[f'{stem}.{leaf}'] = value
        if absent and self.missing_statistics == 'error':
            raise ValueError(self._absent_message(absent))

    def _pick(self, network, state_dict, stem) -> Optional[tuple]:
        """(mean, variance, count) of a norm, or None."""
        suffix = statistics_suffix(self.subnet)
        if suffix and f'{stem}.running_mean{suffix}' in state_dict:
            return (state_dict[f'{stem}.running_mean{suffix}'],
                    state_dict[f'{stem}.running_var{suffix}'], torch.tensor(1))
        mean = state_dict.get(f'{stem}.running_mean')
        if mean is None or (self._is_full and not self.switchable):
            return None  # those of the full width fit no other
        count = state_dict.get(f'{stem}.num_batches_tracked', torch.tensor(1))
        if count == 0 and self._cuts_nothing(network):
            return None  # the zeros and ones of a network never calibrated
        return mean, state_dict[f'{stem}.running_var'], count

    def _cuts_nothing(self, network: nn.Module) -> bool:
        return all(
            tuple(parameter.shape) == self.full_shapes.get(name)
            for name, parameter in network.named_parameters())

    def _absent_message(self, absent) -> str:
        width = f'{self.subnet.width:g}'
        return (
            f'The file has no batch-norm statistics for width {width} '
            f'({len(absent)} norms, such as {absent[0]}): training tracks '
            'none. Measure them: tools/evaluate_widths.py CONFIG CKPT '
            f'--widths {width} --save-checkpoint FILE, and load that file; or '
            f'load what tools/slice_checkpoint.py CKPT OUT --width {width} '
            '--config CONFIG writes. Where all norms will be trained, '
            "missing_statistics='reset' lets them begin anew.")
