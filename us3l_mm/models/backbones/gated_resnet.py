# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""MMPretrain's ResNets, whose blocks can switch channels off."""
from typing import Dict, List, Optional, Tuple

from mmcv.cnn import build_norm_layer
from mmengine.model import constant_init
from mmpretrain.models import ResNet, ResNet_CIFAR
from mmpretrain.models.backbones.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from us3l_mm.models.layers import (FULL, GATED, GatedCompute, Gating, NoGate,
                                   SwitchableGate, keep_full_norms,
                                   subnet_list)
from us3l_mm.registry import MODELS
from .gated_counting import count_gated
from .pretrained import pretrained_cfg
from .weights import SlimmableBackbone

SHARED = 'us3l_mm.SharedBatchNorm2d'
PRIVATE = 'us3l_mm.SwitchableBatchNorm2d'
NORMS = {
    'BN': SHARED,
    SHARED: SHARED,
    'SwitchableBN': PRIVATE,
    PRIVATE: PRIVATE, }


class GatedBlock(nn.Module):
    """Mix-in in front of a residual block of MMPretrain.

    There is a gate for each convolution but the last one, which all read the
    input of the block.
    """

    num_convs: int

    def add_gates(self, norm_cfg: dict, gate: dict) -> None:
        """Give the block its gates, and norms that the two modes may own."""
        for i in range(1, self.num_convs + 1):
            channels = getattr(self, f'conv{i}').out_channels
            setattr(self, getattr(self, f'norm{i}_name'),
                    build_norm_layer(norm_cfg, channels)[1])
            if i < self.num_convs:
                setattr(self, f'gate{i}',
                        SwitchableGate(self.in_channels, channels, **gate))

    def forward(self, x: Tensor) -> Tuple[Tensor, List[Gating]]:
        """The output of the block and, in gated mode, its masks."""
        gatings: List[Gating] = []
        y = x
        for i in range(1, self.num_convs + 1):
            y = getattr(self, f'norm{i}')(getattr(self, f'conv{i}')(y))
            if i == self.num_convs:
                break
            y = self.relu(y)
            gating = getattr(self, f'gate{i}')(x)
            if gating is not None:
                # 0 and 1 are exact in half precision too.
                y = y * gating.mask[..., None, None].to(y.dtype)
                gatings.append(gating)
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.drop_path(y) + shortcut), gatings


class GatedBasicBlock(GatedBlock, BasicBlock):
    """A gate between its two convolutions."""

    num_convs = 2


class GatedBottleneck(GatedBlock, Bottleneck):
    """A gate behind each of the first two of its three convolutions."""

    num_convs = 3


class _GatedResNet(SlimmableBackbone):
    """What :class:`GatedResNet` and :class:`GatedResNet_CIFAR` share."""

    width_range = (1.0, 1.0)
    arch_settings = {
        18: (GatedBasicBlock, (2, 2, 2, 2)),
        34: (GatedBasicBlock, (3, 4, 6, 3)),
        50: (GatedBottleneck, (3, 4, 6, 3)),
        101: (GatedBottleneck, (3, 4, 23, 3)),
        152: (GatedBottleneck, (3, 8, 36, 3)), }

    def __init__(self, depth: int, norm_cfg: Optional[dict] = None,
                 reduction: int = 4, temperature: float = 2 / 3,
                 zero_init_residual: bool = False, **kwargs):
        if depth not in self.arch_settings:
            raise ValueError(
                f'{type(self).__name__} has the depths '
                f'{sorted(self.arch_settings)}, got depth={depth!r}.')
        for name in ('deep_stem', 'with_cp'):
            if kwargs.get(name):
                raise ValueError(
                    f'{type(self).__name__} has no {name}, got '
                    f'{name}={kwargs[name]!r}. Its stem is one convolution, '
                    'and dense and gated share a backward pass, in which a '
                    'checkpoint would not know which of them to run again; '
                    'leave it out.')
        norm_cfg = _check_norm(norm_cfg or dict(type='SwitchableBN'))
        # Stem and shortcuts have the same norms in both modes.
        shared = {**norm_cfg, 'type': SHARED}
        shared.pop('subnets', None)
        super().__init__(depth, norm_cfg=shared,
                         zero_init_residual=zero_init_residual, **kwargs)
        for block in self.blocks.values():
            block.add_gates(norm_cfg,
                            dict(reduction=reduction, temperature=temperature))
        self._freeze_stages()
        self._computes: Dict[tuple, GatedCompute] = {}

    @property
    def blocks(self) -> Dict[str, nn.Module]:
        """The residual blocks by name, from the image on."""
        return {
            f'{stage}.{i}': block for stage in self.res_layers
            for i, block in enumerate(getattr(self, stage))}

    @property
    def feature_rounding(self) -> Tuple[dict, ...]:
        return (dict(slice_in=False), ) * len(self.out_indices)

    def output_channels(self) -> Tuple[int, ...]:
        stages = [getattr(self, name) for name in self.res_layers]
        return tuple(stages[i][-1].out_channels for i in self.out_indices)

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """The maps of the stages ``out_indices``, of images (N, 3, H, W)."""
        return self.forward_gated(x)[0]

    def forward_gated(self,
                      x: Tensor) -> Tuple[Tuple[Tensor, ...], List[Gating]]:
        """The maps, and what the gates say.

        Args:
            x (Tensor): Images (N, 3, H, W).

        Returns:
            tuple: The maps of :meth:`forward`, and a :class:`Gating` of each
            gate from the image on; none in dense mode.
        """
        x = self.maxpool(self.relu(self.norm1(self.conv1(x))))
        maps, gatings = [], []
        for i, stage in enumerate(self.res_layers):
            for block in getattr(self, stage):
                x, masks = block(x)
                gatings += masks
            if i in self.out_indices:
                maps.append(x)
        return tuple(maps), gatings

    def compute(self, size: Tuple[int, int]) -> GatedCompute:
        """What the network computes for images of ``size`` (H, W) in pixels.

        It is counted once for each size, from the shapes of the maps.
        """
        key = (*size, self.conv1.weight.device)
        if key not in self._computes:
            self._computes[key] = count_gated(self, size)
        return self._computes[key]

    def drop_gates(self) -> None:
        """Become a dense network for good, without gates and their norms."""
        for block in self.blocks.values():
            for i in range(1, block.num_convs):
                setattr(block, f'gate{i}', NoGate())
        keep_full_norms(self)

    def init_weights(self) -> None:
        super().init_weights()
        if self.zero_init_residual and pretrained_cfg(self) is None:
            for block in self.blocks.values():
                last = getattr(block, f'norm{block.num_convs}')
                # The private norms inside of a switchable one, too.
                for norm in (last, *last.children()):
                    constant_init(norm, 0)


def _check_norm(norm_cfg: dict) -> dict:
    """``norm_cfg`` with the type of the package, and both modes."""
    if norm_cfg.get('type') not in NORMS:
        raise ValueError(
            "norm_cfg.type is 'SwitchableBN' for norms of dense and gated "
            "mode each, or 'BN' for common ones, got "
            f'{norm_cfg.get("type")!r}.')
    norm_cfg = {**norm_cfg, 'type': NORMS[norm_cfg['type']]}
    if norm_cfg['type'] == SHARED:
        return norm_cfg
    subnets = norm_cfg.setdefault('subnets', ['dense', 'gated'])
    if subnet_list(subnets) != [FULL, GATED]:
        raise ValueError(
            "A gated network has the modes ['dense', 'gated'], got "
            f"norm_cfg.subnets={list(subnets)}. Leave it out, or use type='BN'"
            ' for common norms.')
    return norm_cfg


@MODELS.register_module()
class GatedResNet(_GatedResNet, ResNet):
    """A ResNet that runs dense, or gated by masks of channels per image.

    MMPretrain's :class:`~mmpretrain.models.ResNet` with a gate behind every
    convolution of a block but the last one, so that what a block puts out is
    never masked. Dense mode is the plain network: the same keys, gates and
    norms of gated mode aside, and the same output. Set the mode by
    ``at(network, 'gated')`` or ``at(network, 'dense')``; at first it is
    dense. Masks multiply what the convolutions put out; :meth:`compute` says
    what would be computed without the channels that are off. Source:
    dense + gated SSL, `arXiv 2301.09164
    <https://arxiv.org/abs/2301.09164>`_.

    Args:
        depth (int): From {18, 34, 50, 101, 152}; the paper has 18.
        norm_cfg (dict, optional): ``type='SwitchableBN'`` for norms within
            blocks that each mode has of its own, or ``type='BN'`` for common
            ones. Stem and shortcuts have common ones anyway. Defaults to
            dict(type='SwitchableBN').
        reduction (int): Of the channels in a gate. Defaults to 4.
        temperature (float): Of the gates. Defaults to 2/3.
        zero_init_residual (bool): Whether blocks begin as the identity.
            Defaults to False, as in the authors' runs.
        **kwargs: Those of MMPretrain's ResNet, without ``deep_stem`` and
            ``with_cp``.

    Example:
        >>> from us3l_mm.models import GatedResNet, at
        >>> net = GatedResNet(depth=18).eval()
        >>> with at(net, 'gated'):
        ...     maps, gatings = net.forward_gated(torch.rand(2, 3, 96, 96))
        >>> len(gatings), gatings[0].mask.shape
        (8, torch.Size([2, 64]))
        >>> net.compute((96, 96)).total
        333103104
    """


@MODELS.register_module()
class GatedResNet_CIFAR(_GatedResNet, ResNet_CIFAR):
    """:class:`GatedResNet` for small images.

    The stem is a 3x3 convolution of stride 1 without max-pooling, as in
    MMPretrain's :class:`~mmpretrain.models.ResNet_CIFAR`.

    Args:
        depth (int): As of :class:`GatedResNet`.
        stem_padding (int): Padding of the first convolution in pixels. The
            authors have 2, which makes maps of 34 x 34 pixels from images of
            32 x 32; 1 is the usual stem, that of MMPretrain. Defaults to 2.
        **kwargs: Those of :class:`GatedResNet`.
    """

    def __init__(self, depth: int, stem_padding: int = 2, **kwargs):
        super().__init__(depth, **kwargs)
        if not isinstance(stem_padding, int) or stem_padding < 0:
            raise ValueError('stem_padding is a number of pixels, got '
                             f'{stem_padding!r}.')
        self.conv1.padding = (stem_padding, stem_padding)
        self.maxpool = nn.Identity()
