# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""MMPretrain's ResNets over slimmable layers."""
from typing import Tuple

from mmengine.model import constant_init
from mmpretrain.models import ResNet, ResNet_CIFAR
from mmpretrain.models.backbones.resnet import BasicBlock, Bottleneck

from us3l_mm.models.layers import Subnet
from us3l_mm.registry import MODELS
from .pretrained import pretrained_cfg
from .slimmable_cnn import SlimmableCNN

# The shape of ResNets with three stages, whose depth is 6n + 2.
THREE_STAGES = dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1),
                    out_indices=(2, ))


class _SlimmableResNet(SlimmableCNN):
    """What :class:`SlimmableResNet` and :class:`SlimmableResNet_CIFAR` share.
    """

    def __init__(self, depth: int, **kwargs):
        if depth not in self.arch_settings:
            raise ValueError(
                f'{type(self).__name__} has the depths '
                f'{sorted(self.arch_settings)}, got depth={depth!r}.')
        if len(self.arch_settings[depth][1]) == 3:
            kwargs = {**THREE_STAGES, **kwargs}
        super().__init__(depth, **kwargs)

    def on_slice(self, subnet: Subnet) -> None:
        for block in self.modules():
            if isinstance(block, (BasicBlock, Bottleneck)):
                block.in_channels = block.conv1.in_channels
                block.mid_channels = block.conv1.out_channels
                last = getattr(block, 'conv3', block.conv2)
                block.out_channels = last.out_channels
        self.feat_dim = getattr(self, self.res_layers[-1])[-1].out_channels
        super().on_slice(subnet)

    def output_channels(self) -> Tuple[int, ...]:
        blocks = [getattr(self, name)[-1] for name in self.res_layers]
        return tuple(blocks[i].out_channels for i in self.out_indices)

    def init_weights(self) -> None:
        super().init_weights()
        if self.zero_init_residual and pretrained_cfg(self) is None:
            # MMPretrain zeroes the last norm of a block, and would miss the
            # private norms inside of a switchable one.
            for block in self.modules():
                if isinstance(block, (BasicBlock, Bottleneck)):
                    last = getattr(block, 'norm3', block.norm2)
                    for norm in last.children():
                        constant_init(norm, 0)


@MODELS.register_module()
class SlimmableResNet(_SlimmableResNet, ResNet):
    """A ResNet that runs at any width on one copy of weights.

    MMPretrain's :class:`~mmpretrain.models.ResNet` over slimmable layers: same
    arguments, same state-dict keys, same initial weights. Set the width with
    :func:`us3l_mm.models.layers.at_width` or ``set_subnet``. At width k/8 it
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
            ``type='SwitchableBN', subnets=[...]`` for a private batch norm
            per sub-network; with a ``width`` also ``type='SyncBN'``, for
            statistics over all processes. Defaults to dict(type='BN').
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

    It also has the depths 20, 32, 44, 56 and 110 of three stages. Their
    channels are ``base_channels`` times 1, 2 and 4: 64, the default, is the
    ResNet-20x4 of SlimCLR (arXiv 2209.15525), and ``base_channels=16,
    stem_channels=16`` the ResNet-20 of arXiv 1512.03385, section 4.2, with
    1x1 convolutions as shortcuts where the channels change. MMPretrain has no
    such depths, so a sub-network is our class with a ``width``.
    """

    arch_settings = {
        **ResNet_CIFAR.arch_settings,
        **{
            6 * n + 2: (BasicBlock, (n, n, n)) for n in (3, 5, 7, 9, 18)}}
