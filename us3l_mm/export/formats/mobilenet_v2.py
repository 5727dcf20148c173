# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Weights for the MobileNetV2 of torchvision, and for timm's EfficientNet.

Both have a width multiplier that rounds channels as MMPretrain does. timm
builds its ``mobilenetv2_*`` models from the class and the blocks used here.
"""
from functools import partial
from typing import Dict

import torchvision.models
from torch import Tensor, nn

from .artifact import Artifact, SlicedNetwork
from .bare_weights import bare_weights, cannot_hold, weights_for

TIMM_BLOCKS = ('ds_r1_k3_s1_c16', 'ir_r2_k3_s2_e6_c24', 'ir_r3_k3_s2_e6_c32',
               'ir_r4_k3_s2_e6_c64', 'ir_r3_k3_s1_e6_c96',
               'ir_r3_k3_s2_e6_c160', 'ir_r1_k3_s1_e6_c320')


def torchvision_mobilenet_v2(network: SlicedNetwork) -> Artifact:
    """Weights with the keys of ``torchvision.models.mobilenet_v2``.

    Raises:
        ValueError: If torchvision's class cannot have these layers.
    """
    factor = multiplier(network, 'torchvision')
    stock = torchvision.models.mobilenet_v2(width_mult=factor)
    if stock.last_channel != network.map_channels[-1]:
        raise cannot_hold(
            'torchvision', f'with width_mult={factor:g} its features have '
            f'{stock.last_channel} channels, and this one has '
            f'{network.map_channels[-1]}', 'mmpretrain, mmdet, timm or onnx')
    stock.classifier = nn.Identity()
    return weights_for(network, _renamed(network.plain, stock),
                       'torchvision.models', 'mobilenet_v2',
                       dict(width_mult=factor), head='classifier')


def timm_mobilenet_v2(network: SlicedNetwork) -> Artifact:
    """Weights with timm's keys.

    Raises:
        ValueError: If timm's class cannot have these layers.
    """
    factor = multiplier(network, 'timm')
    features = network.map_channels[-1]

    def build():
        from timm.models._efficientnet_builder import (decode_arch_def,
                                                       round_channels)
        from timm.models.efficientnet import EfficientNet
        return EfficientNet(
            decode_arch_def([[block] for block in TIMM_BLOCKS]), num_classes=0,
            num_features=features, act_layer=nn.ReLU6, round_chs_fn=partial(
                round_channels, multiplier=factor))

    blocks = ''.join(f'    [{block!r}],\n' for block in TIMM_BLOCKS)
    return bare_weights(
        network, _renamed(network.plain, build()), build, f"""\
from functools import partial
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet

network = EfficientNet(decode_arch_def([
{blocks}]), num_classes=0, num_features={features},
    act_layer=torch.nn.ReLU6,
    round_chs_fn=partial(round_channels, multiplier={factor!r}))
""")


def multiplier(network: SlicedNetwork, library: str) -> float:
    """The width multiplier with which ``library`` builds ``network``.

    Raises:
        ValueError: If there is none, or if other arguments are needed.
    """
    arguments = network.family.plain_arguments(network.backbone, network.width)
    if arguments is None:
        reason = (
            'it has the strides of SlimmableMobileNetV2_CIFAR'
            if 'CIFAR' in type(network.backbone).__name__ else
            'no width multiplier gives the channels and shortcuts of width '
            f'{network.width:g} (below width 0.28, stem and first stage have '
            'equally many channels, and a stock network adds a shortcut)')
    else:
        unusual = [name for name in arguments if name != 'widen_factor']
        if not unusual:
            return arguments.get('widen_factor', 1.0)
        reason = f'its MobileNetV2 has no argument {", ".join(unusual)}'
    raise cannot_hold(library, reason)


def _renamed(plain: nn.Module, stock: nn.Module) -> Dict[str, Tensor]:
    """The state dict of ``plain`` with the keys of ``stock``.

    All three libraries have the same layers in the same order.
    """
    return dict(
        zip(stock.state_dict(),
            plain.state_dict().values(), strict=True))
