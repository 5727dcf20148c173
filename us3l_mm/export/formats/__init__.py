# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""File formats of other libraries: a module for each, or for each family."""
from importlib.util import find_spec
from typing import Callable

from .artifact import Artifact, SlicedNetwork, verify
from .mobilenet_v2 import timm_mobilenet_v2, torchvision_mobilenet_v2
from .narrowed_resnet import narrowed_timm, narrowed_torchvision
from .onnx import onnx_model
from .openmmlab import mmdet, mmpretrain
from .resnet import timm_resnet, torchvision_resnet
from .timm_vit import timm_vit

Format = Callable[[SlicedNetwork], Artifact]


def by_family(library: str, **formats: Format) -> Format:
    """A format that calls the one of ``formats`` for the network's family."""

    def artifact(network: SlicedNetwork) -> Artifact:
        name = network.family.name
        if name not in formats:
            raise ValueError(
                f'--format {library} supports no {name}, only '
                f'{" and ".join(sorted(formats))}. Use --format mmpretrain or '
                'onnx.')
        if find_spec(library) is None:
            raise ImportError(
                f'--format {library} needs {library} to check the file: '
                f'pip install {library}')
        return formats[name](network)

    return artifact


TORCHVISION = by_family('torchvision', ResNet=torchvision_resnet,
                        GatedResNet=narrowed_torchvision,
                        MobileNetV2=torchvision_mobilenet_v2)
TIMM = by_family('timm', ResNet=timm_resnet, GatedResNet=narrowed_timm,
                 ViT=timm_vit, MobileNetV2=timm_mobilenet_v2)
FORMATS = dict(mmpretrain=mmpretrain, mmdet=mmdet, torchvision=TORCHVISION,
               timm=TIMM, onnx=onnx_model)

__all__ = ['FORMATS', 'Artifact', 'SlicedNetwork', 'verify']
