# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Weights for the ResNets of torchvision and timm, and for timm's ByobNet.

``timm.models.resnet.ResNet`` has an argument for the channels of its stages,
but its plain stem always has 64. ``ByobNet`` ("bring your own blocks") has the
blocks of a ResNet with any number of channels.
"""
import re
from typing import Dict

from mmpretrain.models import ResNet_CIFAR
from torch import Tensor, nn

from .artifact import Artifact, SlicedNetwork
from .bare_weights import bare_weights, cannot_hold, weights_for

FULL = dict(stem_channels=64, base_channels=64)
# ByobNet's names of the convolutions of a block.
BLOCKS = {
    'BasicBlock': ('basic', ('conv1_kxk', 'conv2_kxk')),
    'Bottleneck': ('bottle', ('conv1_1x1', 'conv2_kxk', 'conv3_1x1')), }
ROUNDING = 8


def torchvision_resnet(network: SlicedNetwork) -> Artifact:
    """Weights of the full width with the keys of torchvision's ResNets.

    Raises:
        ValueError: If torchvision's class cannot have these layers.
    """
    arguments = _usual_arguments(network, 'torchvision', 'ResNet')
    if not FULL.items() <= arguments.items():
        raise cannot_hold(
            'torchvision', 'torchvision.models.ResNet always has 64 channels '
            'after its stem and 64, 128, 256, 512 in its blocks; '
            'width_per_group changes only the middle convolution of a '
            f'bottleneck, and width {network.width:g} has '
            f'{network.plain.conv1.out_channels} and '
            f'{list(network.map_channels)}')
    return weights_for(network, network.plain.state_dict(),
                       'torchvision.models', f'resnet{network.backbone.depth}',
                       {}, head='fc')


def timm_resnet(network: SlicedNetwork) -> Artifact:
    """Weights with timm's keys.

    Raises:
        ValueError: If stem or strides are not those of an ordinary ResNet.
    """
    arguments = _usual_arguments(network, 'timm', 'ResNet and ByobNet')
    if not FULL.items() <= arguments.items():
        return _byobnet(network)
    return weights_for(
        network, network.plain.state_dict(), 'timm', 'create_model',
        dict(model_name=f'resnet{network.backbone.depth}', num_classes=0))


def _usual_arguments(network: SlicedNetwork, library: str,
                     classes: str) -> dict:
    """The arguments of MMPretrain's ResNet, if only channels are unusual.

    Raises:
        ValueError: If other arguments are needed.
    """
    arguments = network.family.plain_arguments(network.backbone,
                                               network.width) or {}
    unusual = [name for name in arguments if name not in ('depth', *FULL)]
    if isinstance(network.backbone, ResNet_CIFAR):
        unusual.append('the 3x3 stem of ResNet_CIFAR')
    if unusual:
        raise cannot_hold(library,
                          f'its {classes} cannot have {", ".join(unusual)}')
    return arguments


def _byobnet(network: SlicedNetwork) -> Artifact:
    plain, stages = network.plain, []
    kind, _ = BLOCKS[plain.block.__name__]
    for index, name in enumerate(plain.res_layers):
        stage = getattr(plain, name)
        middle, out = stage[0].mid_channels, stage[0].out_channels
        if middle % ROUNDING:
            raise cannot_hold(
                'timm', 'its ByobNet rounds the middle channels of a block to '
                f'multiples of {ROUNDING}, and width {network.width:g} has '
                f'{middle}')
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
    """The state dict of a plain ResNet with ByobNet's keys."""
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
