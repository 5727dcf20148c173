# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Weights for timm: its ResNet at full width, its ByobNet at any.

``timm.models.resnet.ResNet`` takes ``channels`` for its stages, but its plain
stem always has 64. ``ByobNet``, timm's "bring your own blocks", takes every
number of channels, in blocks that are those of a ResNet.
"""
import re
from typing import Dict

from torch import Tensor, nn

from .artifact import Artifact, SlicedNetwork
from .bare_weights import bare_weights, need_timm
from .torchvision_resnet import is_full_resnet, unusual_arguments

# ByobNet's names of the convolutions of a block.
BLOCKS = {
    'BasicBlock': ('basic', ('conv1_kxk', 'conv2_kxk')),
    'Bottleneck': ('bottle', ('conv1_1x1', 'conv2_kxk', 'conv3_1x1')), }
ROUNDING = 8


def timm_resnet(network: SlicedNetwork) -> Artifact:
    """Weights under timm's keys.

    Raises:
        ImportError: without timm, as the file could not be checked.
        ValueError: for another stem or other strides than a ResNet's.
    """
    need_timm()
    unusual = unusual_arguments(network)
    if unusual:
        raise ValueError(
            f'timm cannot hold this network: its ResNet and ByobNet know no '
            f'{", ".join(unusual)}. Use --format mmpretrain, mmdet or onnx.')
    if is_full_resnet(network):
        return _resnet(network)
    return _byobnet(network)


def _resnet(network: SlicedNetwork) -> Artifact:
    name = f'resnet{network.backbone.depth}'

    def build():
        import timm
        return timm.create_model(name, num_classes=0)

    return bare_weights(
        network, network.plain.state_dict(), build, f"""\
import timm

network = timm.create_model({name!r}, num_classes=0)
""")


def _byobnet(network: SlicedNetwork) -> Artifact:
    plain, stages = network.plain, []
    kind, _ = BLOCKS[plain.block.__name__]
    for index, name in enumerate(plain.res_layers):
        stage = getattr(plain, name)
        middle, out = stage[0].mid_channels, stage[0].out_channels
        if middle % ROUNDING:
            raise ValueError(
                f'timm cannot hold this network: its ByobNet rounds the '
                f'middle channels of a block to multiples of {ROUNDING}, and '
                f'width {network.width:g} has {middle}. Use --format '
                'mmpretrain, mmdet or onnx.')
        stages.append(
            dict(type=kind, d=len(stage), c=out, gs=0,
                 s=1 if index == 0 else 2, br=middle / out))
    stem = dict(stem_type='7x7', stem_pool='maxpool',
                stem_chs=plain.conv1.out_channels)

    def build():
        from timm.models.byobnet import ByobNet, ByoBlockCfg, ByoModelCfg
        return ByobNet(
            ByoModelCfg(blocks=tuple(ByoBlockCfg(**stage) for stage in stages),
                        **stem), num_classes=0)

    stages_text = ''.join(f'    ByoBlockCfg({_arguments(stage)}),\n'
                          for stage in stages)
    return bare_weights(
        network, byobnet_keys(plain), build, f"""\
from timm.models.byobnet import ByobNet, ByoBlockCfg, ByoModelCfg

network = ByobNet(ByoModelCfg(blocks=(
{stages_text}), {_arguments(stem)}), num_classes=0)
""")


def _arguments(arguments: dict) -> str:
    return ', '.join(f'{k}={v!r}' for k, v in arguments.items())


def byobnet_keys(plain: nn.Module) -> Dict[str, Tensor]:
    """The state dict of a plain ResNet under ByobNet's keys."""
    _, convolutions = BLOCKS[plain.block.__name__]

    def rename(key: str) -> str:
        key = re.sub(r'^conv1\.', 'stem.conv1.conv.', key)
        key = re.sub(r'^bn1\.', 'stem.conv1.bn.', key)
        key = re.sub(r'^layer(\d)', lambda m: f'stages.{int(m[1]) - 1}', key)
        key = key.replace('downsample.0', 'shortcut.conv')
        key = key.replace('downsample.1', 'shortcut.bn')
        return re.sub(r'(stages\.\d\.\d+)\.(conv|bn)(\d)',
                      lambda m: f'{m[1]}.{convolutions[int(m[3]) - 1]}.{m[2]}',
                      key)

    return {rename(key): value for key, value in plain.state_dict().items()}
