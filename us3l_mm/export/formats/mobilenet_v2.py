# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Weights for the MobileNetV2 of torchvision, and for timm's EfficientNet.

Both take a multiplier of channels, which rounds as MMPretrain's does. timm
builds its ``mobilenetv2_*`` models from the class and the blocks used here.
"""
import re
from functools import partial
from typing import Dict

import torchvision.models
from torch import Tensor, nn

from .artifact import Artifact, SlicedNetwork
from .bare_weights import bare_weights, need_timm

TIMM_BLOCKS = ('ds_r1_k3_s1_c16', 'ir_r2_k3_s2_e6_c24', 'ir_r3_k3_s2_e6_c32',
               'ir_r4_k3_s2_e6_c64', 'ir_r3_k3_s1_e6_c96',
               'ir_r3_k3_s2_e6_c160', 'ir_r1_k3_s1_e6_c320')
# Convolution and norm of each module of a block: first without, then with
# expansion.
TORCHVISION = {
    2: (('0.0', '0.1'), ('1', '2')), 3:
    (('0.0', '0.1'), ('1.0', '1.1'), ('2', '3'))}
TIMM = {
    2: (('conv_dw', 'bn1'), ('conv_pw', 'bn2')), 3:
    (('conv_pw', 'bn1'), ('conv_dw', 'bn2'), ('conv_pwl', 'bn3'))}


def torchvision_mobilenet_v2(network: SlicedNetwork) -> Artifact:
    """Under the keys of ``torchvision.models.mobilenet_v2``.

    Raises:
        ValueError: for what torchvision's class cannot express.
    """
    factor = multiplier(network, 'torchvision')
    last = torchvision.models.mobilenet_v2(width_mult=factor).last_channel
    if last != network.map_channels[-1]:
        raise ValueError(
            'torchvision cannot hold this network: with '
            f'width_mult={factor:g} its features have {last} channels, and '
            f'this one has {network.map_channels[-1]}. Use --format '
            'mmpretrain, mmdet, timm or onnx.')

    def build():
        loaded = torchvision.models.mobilenet_v2(width_mult=factor)
        loaded.classifier = nn.Identity()
        return loaded

    return bare_weights(
        network, torchvision_keys(network.plain), build, f"""\
import torchvision

network = torchvision.models.mobilenet_v2(width_mult={factor!r})
network.classifier = torch.nn.Identity()
""")


def timm_mobilenet_v2(network: SlicedNetwork) -> Artifact:
    """Under timm's keys.

    Raises:
        ImportError: without timm, as the file could not be checked.
        ValueError: for what timm's class cannot express.
    """
    need_timm()
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
        network, timm_keys(network.plain), build, f"""\
from functools import partial
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet

network = EfficientNet(decode_arch_def([
{blocks}]), num_classes=0, num_features={features},
    act_layer=torch.nn.ReLU6,
    round_chs_fn=partial(round_channels, multiplier={factor!r}))
""")


def multiplier(network: SlicedNetwork, library: str) -> float:
    """The multiplier of channels that ``network`` has in ``library``.

    Raises:
        ValueError: if there is none, or if it is unusual in another way.
    """
    arguments = network.family.plain_arguments(network.backbone, network.width)
    if arguments is None:
        reason = (
            'it has the strides of SlimmableMobileNetV2_CIFAR'
            if 'CIFAR' in type(network.backbone).__name__ else
            'no multiplier gives the channels and shortcuts of width '
            f'{network.width:g} (where stem and first stage have equally '
            'many channels, as below 0.28, a stock network adds them)')
    else:
        unusual = [name for name in arguments if name != 'widen_factor']
        if not unusual:
            return arguments.get('widen_factor', 1.0)
        reason = f'its MobileNetV2 knows no {", ".join(unusual)}'
    raise ValueError(f'{library} cannot hold this network: {reason}. Use '
                     '--format mmpretrain, mmdet or onnx.')


def torchvision_keys(plain: nn.Module) -> Dict[str, Tensor]:
    """The state dict of a plain MobileNetV2 under torchvision's keys."""
    names, position = {}, 1
    for stage in plain.layers[:-1]:
        for index, block in enumerate(getattr(plain, stage)):
            names[f'{stage}.{index}'] = (f'features.{position}.conv',
                                         TORCHVISION[len(block.conv)])
            position += 1
    return _renamed(
        plain, names, {
            'conv1.conv': 'features.0.0', 'conv1.bn': 'features.0.1',
            'conv2.conv': f'features.{position}.0', 'conv2.bn':
            f'features.{position}.1'})


def timm_keys(plain: nn.Module) -> Dict[str, Tensor]:
    """The state dict of a plain MobileNetV2 under timm's keys."""
    names = {
        f'{stage}.{index}': (f'blocks.{number}.{index}', TIMM[len(block.conv)])
        for number, stage in enumerate(plain.layers[:-1])
        for index, block in enumerate(getattr(plain, stage))}
    return _renamed(
        plain, names, {
            'conv1.conv': 'conv_stem', 'conv1.bn': 'bn1', 'conv2.conv':
            'conv_head', 'conv2.bn': 'bn2'})


def _renamed(plain: nn.Module, blocks: dict,
             ends: Dict[str, str]) -> Dict[str, Tensor]:

    def rename(key: str) -> str:
        module, leaf = key.rsplit('.', 1)
        if module in ends:
            return f'{ends[module]}.{leaf}'
        found = re.fullmatch(r'(layer\d+\.\d+)\.conv\.(\d+)\.(conv|bn)',
                             module)
        stem, parts = blocks[found[1]]
        return f'{stem}.{parts[int(found[2])][found[3] == "bn"]}.{leaf}'

    return {rename(key): value for key, value in plain.state_dict().items()}
