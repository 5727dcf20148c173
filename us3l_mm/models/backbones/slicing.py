# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""From a slimmable network to the ordinary network of a sub-network."""
from copy import deepcopy
from typing import Dict

from torch import Tensor, nn

from us3l_mm.models.layers import (KeepsOwnSubnet, SlimmableLayer, Subnet,
                                   SubnetLike, check_statistics, check_subnets,
                                   slimmable_layers)


def slice_network(network: nn.Module, subnet: SubnetLike,
                  without_statistics: bool = False) -> nn.Module:
    """An ordinary network that computes what ``network`` does at ``subnet``.

    It is a copy in which every slimmable layer is a plain one, with the
    weights and the batch-norm statistics of the sub-network. It shares no
    parameter with ``network``, which is not changed. A module with a method
    ``on_slice(subnet)`` is told when its layers have been replaced. A teacher
    inside ``network`` is not sliced.

    Args:
        network (nn.Module): A slimmable backbone, or a model with one.
        subnet (Subnet, float or str): The sub-network, or its width.
        without_statistics (bool): Whether to allow a sub-network whose
            batch-norm statistics were not measured. Its norms are those of a
            new network then, to be trained. Defaults to False.

    Raises:
        TypeError, ValueError: If the network does not have the sub-network
            or its statistics, or no layer of it is slimmable.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f'A network is a torch.nn.Module, got {network!r}.')
    if not any(slimmable_layers(network)):
        raise ValueError(
            f'This {type(network).__name__} has no slimmable layers: it is an '
            'ordinary network already.')
    subnet = Subnet.of(subnet)
    check_subnets(network, [subnet])
    if not without_statistics:
        check_statistics(network, subnet)
    if isinstance(network, SlimmableLayer):
        return network.plain(subnet)
    # A copy that finds the plain layers where the slimmable ones were.
    sliced = deepcopy(
        network, {
            id(layer): plain
            for layer, plain in _plain_layers(network, subnet).items()})
    _tell(sliced, subnet)
    return sliced


def slice_backbone(backbone: nn.Module,
                   subnet: SubnetLike) -> Dict[str, Tensor]:
    """The state dict of :func:`slice_network`.

    It loads with ``strict=True`` into the stock class wherever
    :func:`~us3l_mm.export.plain_arguments` names the arguments of one, and
    into ours with ``width=...`` for any width.
    """
    return slice_network(backbone, subnet).state_dict()


def slice_layers(module: nn.Module, subnet: SubnetLike) -> None:
    """:func:`slice_network` in place, with or without statistics."""
    plain = _plain_layers(module, subnet)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if child in plain:
                setattr(parent, name, plain[child])
    _tell(module, subnet)


def _plain_layers(module: nn.Module,
                  subnet: SubnetLike) -> Dict[nn.Module, nn.Module]:
    """The plain layer of each slimmable one; frozen ones stay frozen."""
    plain = {}
    for layer in slimmable_layers(module):
        if layer not in plain:  # a layer may sit in two places
            frozen = [not p.requires_grad for p in layer.parameters()]
            plain[layer] = layer.plain(subnet).requires_grad_(
                not frozen or not all(frozen))
    return plain


def _tell(module: nn.Module, subnet: SubnetLike) -> None:
    """Call ``on_slice`` of all modules that were sliced, children first."""
    if isinstance(module, KeepsOwnSubnet):
        return
    for child in module.children():
        _tell(child, subnet)
    if hasattr(module, 'on_slice'):
        module.on_slice(Subnet.of(subnet))
