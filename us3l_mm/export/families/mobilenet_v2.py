# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The stock classes for sub-networks of a MobileNetV2."""
from bisect import bisect_left
from typing import List, Optional, Tuple

from mmpretrain.models import MobileNetV2
from mmpretrain.models.backbones.mobilenet_v2 import InvertedResidual
from mmpretrain.models.utils import make_divisible
from torch import nn

from us3l_mm.models.backbones import (SlimmableMobileNetV2,
                                      SlimmableMobileNetV2_CIFAR)
from .family import Family, non_default, same_channels

# The last stage of each resolution, as in MMDetection's MobileNetV2.
MAPS = (1, 2, 4, 7)
FINEST = 1 / 1024


class MobileNetV2Family(Family):
    """MobileNetV2, where most widths w are those of ``widen_factor=w``.

    Below width 0.28, the stem and the first stage have equally many channels.
    A stock network then has a shortcut between them, and a slimmable network
    does not, as its shortcuts are those of the full width. If the slimmable
    network has a ``widen_factor`` other than 1, its channels have been rounded
    once before, and only some of its widths are those of a stock network.
    """

    name = 'MobileNetV2'
    slimmable = (SlimmableMobileNetV2, )

    def stock_class(self, backbone: nn.Module) -> type:
        return MobileNetV2

    def arguments(self, backbone: nn.Module) -> dict:
        arguments = non_default(
            dict(widen_factor=backbone.widen_factor, act_cfg=backbone.act_cfg),
            MobileNetV2)
        eps = (backbone.norm_cfg or {}).get('eps')
        if eps is not None:
            arguments['norm_cfg'] = dict(type='BN', eps=eps)
        return arguments

    def plain_arguments(self, backbone: nn.Module,
                        width: float) -> Optional[dict]:
        if isinstance(backbone, SlimmableMobileNetV2_CIFAR):
            return None  # no stock class has these strides
        arguments = self.arguments(backbone)
        arguments.pop('widen_factor', None)
        factor = self._widen_factor(backbone, width)
        if factor is None:
            return None
        return arguments if factor == 1.0 else dict(arguments,
                                                    widen_factor=factor)

    def _widen_factor(self, backbone: nn.Module,
                      width: float) -> Optional[float]:
        """The factor that gives the channels of ``backbone`` at ``width``."""
        product = backbone.widen_factor * width
        if self._is(backbone, width, product):
            return product
        # No layer gets fewer channels when the factor rises. So if any factor
        # fits, the smallest one that gives every layer enough of them does.
        wanted = self._block_channels(backbone, width)
        factor = FINEST * bisect_left(
            range(round(2 * max(product, FINEST) / FINEST)), True, lo=1,
            key=lambda n: all(c >= w for c, w in zip(
                _stock_channels(n * FINEST), wanted, strict=True)))
        return factor if self._is(backbone, width, factor) else None

    def _block_channels(self, backbone: nn.Module,
                        width: float) -> Tuple[int, ...]:
        """The channels of the stem and of each stage of blocks."""
        stages = [
            getattr(backbone, name)[-1].conv[-1]
            for name in backbone.layers[:-1]]
        return tuple(
            module.conv.active(width)[1]
            for module in (backbone.conv1, *stages))

    def _is(self, backbone: nn.Module, width: float, factor: float) -> bool:
        if self._block_channels(backbone, width) != _stock_channels(factor):
            return False
        stock = MobileNetV2(factor)
        return (same_channels(backbone, width, stock)
                and _shortcuts(backbone) == _shortcuts(stock))

    def map_channels(self, plain: nn.Module) -> Tuple[int, ...]:
        outputs = [
            *(getattr(plain, name)[-1].conv[-1]
              for name in plain.layers[:-1]), plain.conv2]
        return tuple(outputs[i].conv.out_channels for i in MAPS)

    def map_indices(self, plain: nn.Module) -> Tuple[int, ...]:
        return MAPS


def _shortcuts(network: nn.Module) -> List[bool]:
    """Whether the input is added to the output, for each block."""
    return [
        block.use_res_connect for block in network.modules()
        if isinstance(block, InvertedResidual)]


def _stock_channels(factor: float) -> Tuple[int, ...]:
    """The channels of stem and stages in MMPretrain's class."""
    return tuple(
        make_divisible(channels * factor, 8)
        for channels in (32, *(setting[1]
                               for setting in MobileNetV2.arch_settings)))
