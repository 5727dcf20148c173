# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A neck of full width behind a backbone of any width."""
from typing import Dict, List, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from us3l_mm.models.layers import (SlimmableBatchNorm, SlimmableBatchNorm1d,
                                   SlimmableBatchNorm2d, SlimmableConv2d, at,
                                   evaluation_mode)

NORMS = {
    nn.BatchNorm1d: SlimmableBatchNorm1d,
    nn.BatchNorm2d: SlimmableBatchNorm2d}


def slice_inputs(neck: nn.Module, backbone: nn.Module) -> None:
    """Let ``neck`` take the maps of ``backbone`` at any width, in place.

    The convolutions that read a map of the backbone read its active channels;
    their outputs keep all channels. The result is the same as with maps that
    are padded with zeros (SlimCLR, arXiv 2209.15525), without computing with
    zeros, and can be sliced. Parameters and their names stay. These
    convolutions are found by running the neck on small maps.

    Raises:
        ValueError: If the neck passes a map to anything but an ordinary
            convolution.
    """
    channels = backbone.feature_channels()
    maps = _small_maps(channels)
    readers = _readers(neck, maps)
    if not readers:
        raise ValueError(
            f'No convolution of this {type(neck).__name__} takes a map of the '
            'backbone, so nothing can take fewer channels. Use a neck with '
            'lateral convolutions, such as FPN, PAFPN or ChannelMapper.')
    _replace(
        neck, {
            conv: _reads_active(conv, backbone.feature_rounding[i])
            for conv, i in readers.items()})
    _check(neck, backbone, maps)


def _small_maps(channels: Sequence[int]) -> List[Tensor]:
    draw = torch.Generator().manual_seed(0)
    last = len(channels)
    return [
        torch.randn(1, c, 2**(last - i), 2**(last - i), generator=draw)
        for i, c in enumerate(channels)]


@torch.no_grad()
def _run(neck: nn.Module, maps: Sequence[Tensor]) -> tuple:
    """The outputs in evaluation mode."""
    with evaluation_mode(neck):
        return neck(tuple(maps))


def _readers(neck: nn.Module, maps: List[Tensor]) -> Dict[nn.Module, int]:
    """The convolutions that read a map, with the index of the map."""
    found = {}

    def enters(conv, args):
        for i, each in enumerate(maps):
            if args[0] is each:
                found[conv] = i

    handles = [
        module.register_forward_pre_hook(enters) for module in neck.modules()
        if type(module) is nn.Conv2d]
    try:
        _run(neck, maps)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _reads_active(conv: nn.Conv2d, rounding: dict) -> SlimmableConv2d:
    """``conv`` over the leading channels of its input, with its parameters."""
    sliced = SlimmableConv2d(conv.in_channels, conv.out_channels,
                             conv.kernel_size, conv.stride, conv.padding,
                             conv.dilation, conv.groups, conv.bias is not None,
                             slice_out=False, **rounding)
    sliced.weight, sliced.bias = conv.weight, conv.bias
    return sliced


def _check(neck: nn.Module, backbone: nn.Module, maps: List[Tensor]) -> None:
    """Raise unless narrow maps give the result of maps padded with zeros."""
    lowest = backbone.width_range[0]
    active = backbone.feature_channels(lowest)
    narrow = [m[:, :c] for m, c in zip(maps, active)]
    padded = [
        torch.cat([m, torch.zeros_like(whole[:, c:])], 1)
        for m, whole, c in zip(narrow, maps, active)]
    repair = (f'This {type(neck).__name__} uses a map of the backbone outside '
              'of its convolutions, which needs all of its channels. Use a '
              'neck such as FPN, PAFPN or ChannelMapper.')
    expected = _run(neck, padded)
    try:
        with at(neck, lowest):
            given = _run(neck, narrow)
    except RuntimeError as error:
        raise ValueError(f'{repair} ({error})') from error
    if any(a.shape != b.shape or not torch.allclose(a, b, atol=1e-4)
           for a, b in zip(given, expected)):
        raise ValueError(repair)


def measure_norms(part: nn.Module) -> None:
    """Give batch norms under ``part`` statistics per sub-network, in place.

    The channels after a neck do not narrow, but their statistics differ
    between sub-networks. Parameters and their names stay.

    Raises:
        ValueError: If there are other batch norms, such as SyncBN.
    """
    norms = {}
    for norm in part.modules():
        if not isinstance(norm, _BatchNorm) or isinstance(
                norm, SlimmableBatchNorm):
            continue
        if type(norm) not in NORMS:
            raise ValueError(
                f'{type(norm).__name__} averages statistics over all widths '
                "in training. Set norm_cfg=dict(type='BN') in neck and heads, "
                'whose statistics are measured for each width, and '
                'model.sync_norms=True for those of all processes.')
        norms[norm] = NORMS[type(norm)](norm.num_features, norm.eps,
                                        affine=norm.affine,
                                        slice_channels=False)
        norms[norm].weight, norms[norm].bias = norm.weight, norm.bias
    _replace(part, norms)


def _replace(part: nn.Module, by: Dict[nn.Module, nn.Module]) -> None:
    for parent in list(part.modules()):
        for name, child in list(parent.named_children()):
            if child in by:
                setattr(parent, name, by[child].train(child.training))
