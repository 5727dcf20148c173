# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The registry nodes of us3l_mm, children of MMEngine's roots.

With the roots as parents, ``type='us3l_mm.SlimmableResNet'`` resolves from any
default scope: ``mmpretrain`` while pre-training, ``mmdet`` in a detector.
"""
from mmengine import registry as roots
from mmengine.registry import Registry


def _child(root: Registry, location: str) -> Registry:
    return Registry(root.name, scope='us3l_mm', parent=root, locations=[
        location])


MODELS = _child(roots.MODELS, 'us3l_mm.models')
MODEL_WRAPPERS = _child(roots.MODEL_WRAPPERS, 'us3l_mm.engine')
HOOKS = _child(roots.HOOKS, 'us3l_mm.engine')
OPTIMIZERS = _child(roots.OPTIMIZERS, 'us3l_mm.engine')
OPTIM_WRAPPERS = _child(roots.OPTIM_WRAPPERS, 'us3l_mm.engine')
LOOPS = _child(roots.LOOPS, 'us3l_mm.engine')
DATASETS = _child(roots.DATASETS, 'us3l_mm.datasets')
DATA_SAMPLERS = _child(roots.DATA_SAMPLERS, 'us3l_mm.datasets')
TRANSFORMS = _child(roots.TRANSFORMS, 'us3l_mm.datasets')
