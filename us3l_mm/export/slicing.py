# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Cutting an ordinary network out of a slimmable one."""
from copy import deepcopy
from typing import Dict

from torch import Tensor, nn

from us3l_mm.models.backbones.slicing import plain_layers, tell_of_slicing
from us3l_mm.models.layers import (SlimmableLayer, Subnet, SubnetLike,
                                   check_statistics, slimmable_layers)


def slice_network(network: nn.Module, subnet: SubnetLike,
                  without_statistics: bool = False) -> nn.Module:
    """An ordinary network that computes what ``network`` does at ``subnet``.

    A copy in which every slimmable layer is a plain one with the leading
    channels of its weights and the statistics of this width. No parameter is
    shared with ``network``, which stays as it is; so does a teacher inside.

    Args:
        network (nn.Module): A slimmable backbone, or what contains one.
        subnet (Subnet, float or str): The sub-network, or its width.
        without_statistics (bool): Allow a width whose batch-norm statistics
            were not measured; its norms are new then, to be trained. Defaults
            to False.

    Raises:
        TypeError, ValueError: if the width is not allowed or has no
            statistics, or if nothing is slimmable.
    """
    if not any(slimmable_layers(network)):
        raise ValueError(
            f'This {type(network).__name__} has no slimmable layers: it is an '
            'ordinary network already.')
    subnet = Subnet.of(subnet)
    for module in network.modules():
        if hasattr(module, 'width_range'):
            subnet.check(module.width_range)
    if not without_statistics:
        check_statistics(network, subnet)
    if isinstance(network, SlimmableLayer):
        return network.plain(subnet)
    # A copy that finds the plain layers where the slimmable ones were.
    narrow = deepcopy(network, {
        id(layer): plain
        for layer, plain in plain_layers(network, subnet).items()
    })
    tell_of_slicing(narrow, subnet)
    return narrow


def slice_backbone(backbone: nn.Module,
                   subnet: SubnetLike) -> Dict[str, Tensor]:
    """The state dict of ``backbone`` at ``subnet``: an ordinary network's keys.

    Where :func:`~us3l_mm.export.plain_arguments` names arguments of the stock
    class, it loads there with ``strict=True``; at any width it loads into
    ours with ``width=...``. Errors are those of :func:`slice_network`.
    """
    return slice_network(backbone, subnet).state_dict()
