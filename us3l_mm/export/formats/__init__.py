# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .artifact import Artifact, SubNetwork, verify
from .onnx import onnx_model
from .openmmlab import mmdet, mmpretrain
from .timm import timm_network
from .torchvision import torchvision_resnet

FORMATS = {
    'mmpretrain': mmpretrain,
    'mmdet': mmdet,
    'torchvision': torchvision_resnet,
    'timm': timm_network,
    'onnx': onnx_model,
}

__all__ = ['FORMATS', 'Artifact', 'SubNetwork', 'verify']
