# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""MMPretrain's ResNets over slimmable layers."""
from typing import Optional, Tuple

from mmengine.model import constant_init
from mmpretrain.models import ResNet, ResNet_CIFAR
from mmpretrain.models.backbones.resnet import BasicBlock, Bottleneck
from torch import nn

from us3l_mm.models.layers import (SlimmableConv2d, SwitchableBatchNorm,
                                   active_channels, check_width,
                                   check_width_range)
from us3l_mm.registry import MODELS
from .narrow import Cut, cut_layers
from .weights import ChecksItsWeights

NORMS = {
    'BN': 'us3l_mm.SlimmableBatchNorm2d',
    'BN2d': 'us3l_mm.SlimmableBatchNorm2d',
    'SwitchableBN': 'us3l_mm.SwitchableBatchNorm2d',
}


def check_sync(width: Optional[float]) -> None:
    """Refuse SyncBN without a width: statistics would mix several."""
    if width is None:
        raise ValueError(
            "norm_cfg.type='SyncBN' is for a network of a single width: set "
            'width=0.5, say. Pre-training synchronises its norms by '
            'model.sync_norms=True.')


class _SlimmableResNet(ChecksItsWeights):
    """What :class:`SlimmableResNet` and :class:`SlimmableResNet_CIFAR` share.
    """

    # Of an ordinary network of that width; None for one that runs at any.
    width: Optional[float] = None

    def __init__(self, depth: int, width_range: Tuple[float,
                                                      float] = (0.25, 1.0),
                 divisor: int = 8, conv_cfg: Optional[dict] = None,
                 norm_cfg: Optional[dict] = None,
                 width: Optional[float] = None,
                 missing_statistics: str = 'error', **kwargs):
        if depth not in self.arch_settings:
            raise ValueError(
                f'{type(self).__name__} has the depths '
                f'{sorted(self.arch_settings)}, got depth={depth!r}.')
        if conv_cfg is not None:
            raise ValueError(
                f'{type(self).__name__} brings its own convolutions, got '
                f'conv_cfg={conv_cfg!r}; leave it out.')
        norm_cfg = dict(norm_cfg or dict(type='BN'))
        sync = norm_cfg['type'] == 'SyncBN'
        if sync:
            check_sync(width)
            norm_cfg['type'] = 'BN'
        if norm_cfg['type'] not in {*NORMS, *NORMS.values()}:
            raise ValueError(
                f'norm_cfg.type is one of {sorted(NORMS)}, got '
                f'{norm_cfg["type"]!r}.')
        norm_cfg['type'] = NORMS.get(norm_cfg['type'], norm_cfg['type'])
        norm_cfg['divisor'] = divisor
        super().__init__(
            depth, norm_cfg=norm_cfg, conv_cfg=dict(
                type='us3l_mm.SlimmableConv2d', divisor=divisor), **kwargs)
        self.width_range = check_width_range(width_range)
        self.divisor = divisor
        # The stem sees the whole image at every width.
        stem = next(m for m in self.modules()
                    if isinstance(m, SlimmableConv2d))
        stem.slice_in = False
        stem.on_width()
        if width is not None:
            self._narrow(check_width(width, self.width_range),
                         missing_statistics)
            if sync:
                nn.SyncBatchNorm.convert_sync_batchnorm(self)
        elif missing_statistics != 'error':
            raise ValueError('missing_statistics is for a network of a single '
                             'width, got it without a width.')

    def _narrow(self, width: float, missing_statistics: str) -> None:
        """Make this an ordinary network of one width."""
        if missing_statistics == 'reset' and (self.norm_eval
                                              or self.frozen_stages >= 0):
            raise ValueError(
                "missing_statistics='reset' needs norms that train, got "
                f'norm_eval={self.norm_eval}, '
                f'frozen_stages={self.frozen_stages}: frozen norms would '
                'normalise by the statistics of a new layer for ever.')
        self.cut = Cut(self, width, missing_statistics)
        cut_layers(self, width)

    def on_cut(self, width: float) -> None:
        """Adapt what knows channel counts, now that all layers are plain."""
        for block in self.modules():
            if isinstance(block, (BasicBlock, Bottleneck)):
                block.in_channels = block.conv1.in_channels
                block.mid_channels = block.conv1.out_channels
                last = getattr(block, 'conv3', block.conv2)
                block.out_channels = last.out_channels
        self.feat_dim = getattr(self, self.res_layers[-1])[-1].out_channels
        self.width, self.width_range = width, (width, width)
        self._freeze_stages()

    def feature_channels(self, width: Optional[float] = None
                         ) -> Tuple[int, ...]:
        """Channels of each output (``out_indices``) at ``width``.

        Defaults to the width that the network was built for, else the full.
        """
        blocks = [getattr(self, name)[-1] for name in self.res_layers]
        channels = [blocks[i].out_channels for i in self.out_indices]
        if width is not None:
            width = check_width(width, self.width_range)
        if width is None or self.width is not None:
            return tuple(channels)
        return tuple(active_channels(c, width, self.divisor)
                     for c in channels)

    @property
    def out_channels(self) -> Tuple[int, ...]:
        """What a neck asks for: :meth:`feature_channels` of this network."""
        return self.feature_channels()

    @property
    def feature_rounding(self) -> Tuple[dict, ...]:
        """How each output narrows: arguments of a slimmable layer behind it.
        """
        return (dict(divisor=self.divisor), ) * len(self.out_indices)

    def init_weights(self) -> None:
        super().init_weights()
        if self.zero_init_residual and not self._is_pretrained:
            # The house's zero init looks for a norm's own weight; a
            # switchable norm has one per width.
            for block in self.modules():
                if isinstance(block, (BasicBlock, Bottleneck)):
                    last = (block.norm3 if isinstance(block, Bottleneck) else
                            block.norm2)
                    if isinstance(last, SwitchableBatchNorm):
                        for norm in last.norms:
                            constant_init(norm, 0)

    @property
    def _is_pretrained(self) -> bool:
        return (isinstance(self.init_cfg, dict)
                and self.init_cfg['type'] == 'Pretrained')

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        return self  # MMPretrain's ResNet returns None


@MODELS.register_module()
class SlimmableResNet(_SlimmableResNet, ResNet):
    """A ResNet that runs at any width on one copy of weights.

    MMPretrain's :class:`~mmpretrain.models.ResNet` over slimmable layers: same
    arguments, same state-dict keys, same initial weights. Set the width with
    :func:`us3l_mm.models.layers.set_width` or ``at_width``. At width k/8 it
    equals ``ResNet(base_channels=8k, stem_channels=8k)`` with the leading
    channels of its weights; at other widths every layer rounds on its own.
    Source: US3L, `Three Guidelines You Should Know for Universally Slimmable
    Self-Supervised Learning
    <https://arxiv.org/abs/2303.06870>`_.

    Args:
        depth (int): From {18, 34, 50, 101, 152}.
        width_range (tuple[float, float]): Lowest and highest width that may
            be set. Defaults to (0.25, 1.0).
        divisor (int): Channels are rounded to multiples of it. Defaults to 8.
        norm_cfg (dict, optional): ``type='BN'`` for
            :class:`~us3l_mm.models.layers.SlimmableBatchNorm2d`, or
            ``type='SwitchableBN', widths=[...]`` for one private batch norm
            per width; with a ``width`` also ``type='SyncBN'``, for statistics
            over all processes. Defaults to dict(type='BN').
        width (float, optional): Build an ordinary network of this width: plain
            convolutions, and batch norms with running statistics, to
            fine-tune, to train a detector on, or to hold a sliced checkpoint.
            Given a checkpoint of the full network, by
            ``init_cfg=dict(type='Pretrained', ...)`` or else, it takes over
            the leading channels and the statistics of its width; what is
            missing or narrower raises ValueError. Defaults to None: a
            slimmable network.
        missing_statistics (str): With a ``width``, what to do about a
            checkpoint of the full network without statistics for it: 'error',
            or 'reset', which lets the norms begin anew and needs all of them
            to train. Defaults to 'error'.
        **kwargs: Those of MMPretrain's ResNet (``out_indices``,
            ``frozen_stages``, ``norm_eval``, ``with_cp``, ...).

    Example:
        >>> from us3l_mm.models import SlimmableResNet, at_width
        >>> net = SlimmableResNet(depth=18).train()
        >>> with at_width(net, 0.5):
        ...     print(net(torch.rand(2, 3, 32, 32))[-1].shape)
        torch.Size([2, 256, 1, 1])
    """


@MODELS.register_module()
class SlimmableResNet_CIFAR(_SlimmableResNet, ResNet_CIFAR):
    """:class:`SlimmableResNet` for small images.

    The stem is a 3x3 convolution of stride 1 without max-pooling, as in
    MMPretrain's :class:`~mmpretrain.models.ResNet_CIFAR`; all else is that of
    :class:`SlimmableResNet`.
    """
