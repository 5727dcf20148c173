# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Weights for the ResNets of torchvision and timm, after they are narrowed.

These classes have no argument for the inner channels of a block, but run with
any. So their layers are made again, with the channels of the file.
"""
import inspect
from importlib import import_module
from typing import Callable, Dict

import torch
from mmpretrain.models import ResNet_CIFAR
from torch import Tensor, nn

from .artifact import Artifact, SlicedNetwork
from .bare_weights import bare_weights, cannot_hold
from .resnet import FULL, timm_resnet, torchvision_resnet

# Arguments of our class that the code below takes care of.
USUAL = ('depth', 'stem_channels', 'base_channels', 'mid_channels',
         'stem_padding')


def narrow(network: nn.Module, weights: Dict[str, Tensor]) -> None:
    """Give the layers of a ResNet the channels of ``weights``."""
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Conv2d):
            outputs, inputs, *kernel = weights[f'{name}.weight'].shape
            torch.nn.Conv2d.__init__(layer, inputs, outputs, kernel,
                                     layer.stride, layer.padding, bias=False)
        elif isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.BatchNorm2d.__init__(layer,
                                          len(weights[f'{name}.weight']))


def narrowed_torchvision(network: SlicedNetwork) -> Artifact:
    """Weights of what remains of a gated network, with torchvision's keys.

    Raises:
        ValueError: If torchvision's class cannot have these layers.
    """
    if _is_stock(network):
        return torchvision_resnet(network)
    return _narrowed(network, 'torchvision', 'torchvision.models',
                     f'resnet{network.backbone.depth}', {}, head='fc')


def narrowed_timm(network: SlicedNetwork) -> Artifact:
    """Weights of what remains of a gated network, with timm's keys.

    Raises:
        ValueError: If timm's class cannot have these layers.
    """
    if _is_stock(network):
        return timm_resnet(network)
    return _narrowed(
        network, 'timm', 'timm', 'create_model',
        dict(model_name=f'resnet{network.backbone.depth}', num_classes=0))


def _is_stock(network: SlicedNetwork) -> bool:
    """Whether it is the ResNet that these libraries have."""
    arguments = network.family.plain_arguments(network.backbone, 1.0)
    return (arguments is not None and FULL.items() <= arguments.items()
            and not isinstance(network.backbone, ResNet_CIFAR))


def _narrowed(network: SlicedNetwork, library: str, module: str, name: str,
              arguments: dict, head: str = '') -> Artifact:
    unusual = [
        key for key in network.family.arguments(network.backbone)
        if key not in USUAL]
    if unusual:
        raise cannot_hold(library,
                          f'its ResNet cannot have {", ".join(unusual)}')
    plain = network.plain
    replaced: Dict[str, Callable[[], nn.Module]] = {}
    lines = []
    if head:
        replaced[head] = nn.Identity
        lines.append(f'network.{head} = torch.nn.Identity()')
    if isinstance(network.backbone, ResNet_CIFAR):  # the stem
        padding = plain.conv1.padding[0]
        replaced.update(conv1=lambda: nn.Conv2d(3, 64, 3, padding=padding),
                        maxpool=nn.Identity)
        lines += [
            f'network.conv1 = torch.nn.Conv2d(3, 64, 3, padding={padding})',
            'network.maxpool = torch.nn.Identity()']

    def build() -> nn.Module:
        loaded = getattr(import_module(module), name)(**arguments)
        for key, make in replaced.items():
            setattr(loaded, key, make())
        narrow(loaded, plain.state_dict())
        return loaded

    listed = ', '.join(f'{key}={value!r}' for key, value in arguments.items())
    usage = '\n'.join([
        f'from {module} import {name}', '', '',
        inspect.getsource(narrow).replace(
            '(network: nn.Module, weights: Dict[str, Tensor]) -> None',
            '(network, weights)'), '', f'network = {name}({listed})', *lines])
    return bare_weights(network, plain.state_dict(), build, f'{usage}\n',
                        'narrow(network, weights)\n')
