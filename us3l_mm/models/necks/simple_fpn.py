# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Sequence, Tuple, Union

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from us3l_mm.registry import MODELS

NORM = dict(type='mmpretrain.LN2d')


@MODELS.register_module()
class SimpleFPN(BaseModule):
    """A feature pyramid from the one map of a plain transformer.

    The map, of stride 16 say, is scaled to 4, 2, 1 and 1/2 of its sides by
    transposed convolutions and max-pooling; then each level has a 1x1 and a
    3x3 convolution. More levels are sub-sampled from the last. Source: ViTDet,
    arXiv 2203.16527, section 3 ("simple feature pyramid").

    Args:
        in_channels (int or sequence[int]): Of the map, a multiple of 4.
        out_channels (int): Of all levels. Defaults to 256.
        num_outs (int): Levels, at least 4. Defaults to 5.
        norm_cfg (dict): After each convolution. Defaults to a layer norm over
            channels.
        init_cfg (dict, optional): As of any MMEngine module.

    Shapes: a tuple of one map (N, c, H, W) to maps of the sides 4 H, 2 H, H,
    H / 2, H / 4, ...
    """

    def __init__(self, in_channels: Union[int, Sequence[int]],
                 out_channels: int = 256, num_outs: int = 5,
                 norm_cfg: dict = NORM, init_cfg: Union[dict, None] = None):
        super().__init__(init_cfg)
        channels = ([in_channels]
                    if isinstance(in_channels, int) else list(in_channels))
        if len(channels) != 1 or channels[0] % 4:
            raise ValueError(
                'SimpleFPN takes one map, of a multiple of 4 channels, got '
                f'in_channels={in_channels}. Give the backbone '
                "out_type='featmap' and the last layer as out_indices.")
        if num_outs < 4:
            raise ValueError(f'num_outs is at least 4, got {num_outs}.')
        self.in_channels, self.num_outs = channels, num_outs
        c, = channels
        self.scales = nn.ModuleList([
            nn.Sequential(
                ConvModule(c, c // 2, 2, 2, norm_cfg=norm_cfg, conv_cfg=dict(
                    type='deconv'), act_cfg=dict(type='GELU')),
                nn.ConvTranspose2d(c // 2, c // 4, 2, 2)),
            nn.ConvTranspose2d(c, c // 2, 2, 2),
            nn.Identity(),
            nn.MaxPool2d(2, 2)])
        self.convs = nn.ModuleList(
            nn.Sequential(
                *(ConvModule(inside, out_channels, kernel, padding=kernel //
                             2, norm_cfg=norm_cfg, act_cfg=None)
                  for inside, kernel in ((width, 1), (out_channels, 3))))
            for width in (c // 4, c // 2, c, c))

    def forward(self, maps: Tuple[Tensor]) -> Tuple[Tensor, ...]:
        """The levels, from fine to coarse."""
        x, = maps
        levels = [
            conv(scale(x)) for scale, conv in zip(self.scales, self.convs)]
        while len(levels) < self.num_outs:
            levels.append(F.max_pool2d(levels[-1], 1, stride=2))
        return tuple(levels)
