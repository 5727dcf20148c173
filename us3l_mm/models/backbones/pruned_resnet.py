# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""ResNets whose blocks have individual inner widths, such as pruned ones."""
from itertools import pairwise
from typing import List, Optional, Sequence, Tuple

from mmcv.cnn import build_conv_layer, build_norm_layer
from mmpretrain.models import ResNet, ResNet_CIFAR
from mmpretrain.models.backbones.resnet import Bottleneck
from torch import nn

from us3l_mm.registry import MODELS
from .weights import SlimmableBackbone


class _PrunedResNet(SlimmableBackbone):
    """What :class:`PrunedResNet` and :class:`PrunedResNet_CIFAR` share."""

    width, width_range = 1.0, (1.0, 1.0)  # it is an ordinary network

    def __init__(self, depth: int,
                 mid_channels: Optional[Sequence[Sequence[int]]] = None,
                 **kwargs):
        if depth not in self.arch_settings:
            raise ValueError(
                f'{type(self).__name__} has the depths '
                f'{sorted(self.arch_settings)}, got depth={depth!r}.')
        super().__init__(depth, **kwargs)
        self.full_channels = inner_channels(self)
        if mid_channels is not None:
            self._narrow(_check(self, mid_channels))
            self._freeze_stages()  # the new layers, too

    @property
    def mid_channels(self) -> List[List[int]]:
        """For each stage, what its inner convolutions put out, in order."""
        return inner_channels(self)

    def output_channels(self) -> Tuple[int, ...]:
        stages = [getattr(self, name) for name in self.res_layers]
        return tuple(stages[i][-1].out_channels for i in self.out_indices)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        found = _in_file(self, state_dict, prefix)
        if found and found != self.mid_channels:
            raise ValueError(
                f'The file has mid_channels={found}, this network '
                f'{self.mid_channels}. Build it like the file: '
                'model.backbone.mid_channels='
                f'"{str(found).replace(" ", "")}".')
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _narrow(self, mid_channels: List[List[int]]) -> None:
        for name, channels in zip(self.res_layers, mid_channels):
            left = iter(channels)
            for block in getattr(self, name):
                count = num_convs(block)
                widths = [block.in_channels]
                widths += [next(left) for _ in range(count - 1)]
                widths.append(block.out_channels)
                block.mid_channels = widths[1]
                for i, sizes in enumerate(pairwise(widths), start=1):
                    _replace(block, i, *sizes)


def _replace(block: nn.Module, i: int, inputs: int, outputs: int) -> None:
    """Give convolution and norm number ``i`` of a block other channels."""
    old = getattr(block, f'conv{i}')
    setattr(
        block, f'conv{i}',
        build_conv_layer(block.conv_cfg, inputs, outputs, old.kernel_size,
                         stride=old.stride, padding=old.padding,
                         dilation=old.dilation, bias=False))
    setattr(block, getattr(block, f'norm{i}_name'),
            build_norm_layer(block.norm_cfg, outputs)[1])


def num_convs(block: nn.Module) -> int:
    """How many convolutions a residual block of MMPretrain has in a row."""
    return 3 if isinstance(block, Bottleneck) else 2


def inner_channels(network: nn.Module) -> List[List[int]]:
    """For each stage, the output channels of all convolutions inside a block.

    These are all convolutions of a block but the last one.
    """
    return [[
        getattr(block, f'conv{i}').out_channels
        for block in getattr(network, name)
        for i in range(1, num_convs(block))] for name in network.res_layers]


def _in_file(network: nn.Module, state_dict: dict,
             prefix: str) -> Optional[List[List[int]]]:
    """:func:`inner_channels` of the weights in a file; None if some lack."""
    try:
        return [[
            len(state_dict[f'{prefix}{name}.{k}.conv{i}.weight'])
            for k, block in enumerate(getattr(network, name))
            for i in range(1, num_convs(block))]
                for name in network.res_layers]
    except KeyError:
        return None


def _check(network: '_PrunedResNet',
           mid_channels: Sequence[Sequence[int]]) -> List[List[int]]:
    """``mid_channels`` as lists, or a ValueError."""
    full = network.full_channels
    lists = isinstance(mid_channels, (list, tuple)) and all(
        isinstance(stage, (list, tuple)) for stage in mid_channels)
    fits = lists and [*map(len, mid_channels)] == [*map(len, full)] and all(
        isinstance(c, int) and not isinstance(c, bool) and 1 <= c <= most
        for stage, limits in zip(mid_channels, full)
        for c, most in zip(stage, limits))
    if not fits:
        raise ValueError(
            'mid_channels has a list for each stage, with the channels of '
            'every convolution of its blocks but the last one of each; for '
            f'depth={network.depth} they are integers from 1 to {full}, got '
            f'{mid_channels}. tools/slice_checkpoint.py CKPT OUT --width gated'
            ' prints those of its file.')
    return [list(stage) for stage in mid_channels]


@MODELS.register_module()
class PrunedResNet(_PrunedResNet, ResNet):
    """A ResNet whose blocks have individual inner widths.

    MMPretrain's :class:`~mmpretrain.models.ResNet`, with its blocks and its
    keys. Only the channels between the convolutions of a block are fewer;
    what blocks, stages and the stem put out is as in the full network. It
    holds what remains of a gated network without its gates
    (:func:`us3l_mm.export.prune`), and is trained, frozen and used in a
    detector as any ResNet.

    Args:
        depth (int): From {18, 34, 50, 101, 152}.
        mid_channels (sequence[sequence[int]], optional): For each stage, the
            output channels of every convolution of its blocks except the last
            one of each, from the image on: one for a block of ResNet-18, two
            for a bottleneck. Defaults to those of the full network.
        **kwargs: Those of MMPretrain's ResNet (``out_indices``,
            ``frozen_stages``, ``norm_cfg``, ``norm_eval``, ...).

    Raises:
        ValueError: If ``mid_channels`` do not fit the depth.

    Example:
        >>> from us3l_mm.models import PrunedResNet
        >>> net = PrunedResNet(18, [[40, 52], [99, 96], [200, 8], [300, 1]])
        >>> net.layer1[0].conv1.out_channels, net.layer1[0].out_channels
        (40, 64)
    """


@MODELS.register_module()
class PrunedResNet_CIFAR(_PrunedResNet, ResNet_CIFAR):
    """:class:`PrunedResNet` for small images.

    The stem is that of :class:`GatedResNet_CIFAR`, a 3x3 convolution of stride
    1 without max-pooling.

    Args:
        depth (int): As of :class:`PrunedResNet`.
        mid_channels (sequence[sequence[int]], optional): As of
            :class:`PrunedResNet`.
        stem_padding (int): Padding of the first convolution in pixels.
            Defaults to 1, as in MMPretrain.
        **kwargs: Those of :class:`PrunedResNet`.
    """

    def __init__(self, depth: int,
                 mid_channels: Optional[Sequence[Sequence[int]]] = None,
                 stem_padding: int = 1, **kwargs):
        super().__init__(depth, mid_channels, **kwargs)
        self.stem_padding = stem_padding
        self.conv1.padding = (stem_padding, stem_padding)
