# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Cutting an ordinary network out of a slimmable one."""
from copy import deepcopy
from typing import Dict, List

from torch import Tensor, nn

from us3l_mm.models.backbones.narrow import plain_layers, tell_of_cut
from us3l_mm.models.layers import (SlimmableBatchNorm, SlimmableLayer,
                                   check_width, slimmable_layers)
from us3l_mm.models.layers.norm import statistics_suffix


def slice_network(network: nn.Module, width: float,
                  without_statistics: bool = False) -> nn.Module:
    """An ordinary network that computes what ``network`` does at ``width``.

    A copy in which every slimmable layer is a plain one with the leading
    channels of its weights and the statistics of this width. No parameter is
    shared with ``network``, which stays as it is; so does a teacher inside.

    Args:
        network (nn.Module): A slimmable backbone, or what contains one.
        width (float): Within the ``width_range`` of the network.
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
    for module in network.modules():
        width = check_width(width, getattr(module, 'width_range', (0.0, 1.0)))
    if not without_statistics:
        check_statistics(network, width)
    if isinstance(network, SlimmableLayer):
        return network.plain(width)
    # A copy that finds the plain layers where the slimmable ones were.
    narrow = deepcopy(network, {
        id(layer): plain
        for layer, plain in plain_layers(network, width).items()
    })
    tell_of_cut(narrow, width)
    return narrow


def slice_backbone(backbone: nn.Module, width: float) -> Dict[str, Tensor]:
    """The state dict of ``backbone`` at ``width``: an ordinary network's keys.

    Where :func:`~us3l_mm.export.plain_arguments` names arguments of the stock
    class, it loads there with ``strict=True``; at any width it loads into
    ours with ``width=...``. Errors are those of :func:`slice_network`.
    """
    return slice_network(backbone, width).state_dict()


def has_statistics(network: nn.Module, width: float) -> bool:
    """Whether all norms of ``network`` have statistics for ``width``."""
    return not _unmeasured(network, width)


def check_statistics(network: nn.Module, width: float) -> None:
    """Raise ValueError unless all norms have statistics for ``width``."""
    norms = _unmeasured(network, width)
    if norms:
        known = ', '.join(f'{w:g}' for w in norms[0].measured_widths)
        raise ValueError(
            f'No batch-norm statistics for width {width:g}; measured are: '
            f'{known or "none"}. Measure them with us3l_mm.evaluation.'
            f'calibrate(network, batches, [{width:g}]), or give the tool the '
            'training --config, to calibrate on its images.')


def _unmeasured(network: nn.Module, width: float) -> List[nn.Module]:
    return [
        layer for layer in slimmable_layers(network)
        if isinstance(layer, SlimmableBatchNorm) and statistics_suffix(width)
        not in map(statistics_suffix, layer.measured_widths)
    ]
