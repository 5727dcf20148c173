# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Weights for torchvision's own ResNet, where its geometry allows."""
import torchvision.models
from torch import nn

from us3l_mm.export.families import family_of, plain_arguments
from .artifact import Artifact, SlicedNetwork
from .bare_weights import bare_weights

FULL = dict(stem_channels=64, base_channels=64)


def torchvision_resnet(network: SlicedNetwork) -> Artifact:
    """The full width, under the keys of ``torchvision.models.resnet*``.

    Raises:
        ValueError: for all that torchvision's class cannot express.
    """
    check_full_resnet(
        network, 'torchvision',
        ('torchvision.models.ResNet always has 64 channels after its stem and '
         '64, 128, 256, 512 in its blocks; width_per_group changes only the '
         'middle convolution of a bottleneck'))
    name = f'resnet{network.backbone.depth}'

    def build():
        loaded = getattr(torchvision.models, name)()
        loaded.fc = nn.Identity()
        return loaded

    return bare_weights(
        network, network.plain.state_dict(), build, f"""\
import torchvision

network = torchvision.models.{name}()
network.fc = torch.nn.Identity()
""")


def is_full_resnet(network: SlicedNetwork) -> bool:
    """Whether this is an ordinary ResNet of 64 channels."""
    arguments = plain_arguments(network.backbone, network.width) or {}
    return not unusual_arguments(network) and FULL.items() <= arguments.items()


def unusual_arguments(network: SlicedNetwork) -> list:
    """What this ResNet does otherwise than torchvision's, channels apart."""
    arguments = plain_arguments(network.backbone, network.width) or {}
    names = [name for name in arguments if name not in ('depth', *FULL)]
    if family_of(network.backbone).stock_class(
            network.backbone).__name__ == 'ResNet_CIFAR':
        names.append('the 3x3 stem of ResNet_CIFAR')
    return names


def check_full_resnet(network: SlicedNetwork, library: str, why: str) -> None:
    """Raise ValueError unless this is the ResNet that ``library`` has."""
    if is_full_resnet(network):
        return
    unusual = unusual_arguments(network)
    reason = (f'its ResNet knows no {", ".join(unusual)}'
              if unusual else f'{why}, and width {network.width:g} has '
              f'{network.plain.conv1.out_channels} and '
              f'{list(network.map_channels)}')
    raise ValueError(
        f'{library} cannot hold this network: {reason}. Use --format '
        'mmpretrain, mmdet or onnx.')
