# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The registry nodes of us3l_mm, children of MMEngine's roots.

With the roots as parents, ``type='us3l_mm.SlimmableResNet'`` resolves from any
default scope: ``mmpretrain`` while pre-training, ``mmdet`` in a detector.
"""
from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import MODEL_WRAPPERS as MMENGINE_MODEL_WRAPPERS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

MODELS = Registry('model', scope='us3l_mm', parent=MMENGINE_MODELS,
                  locations=['us3l_mm.models'])
MODEL_WRAPPERS = Registry('model wrapper', scope='us3l_mm',
                          parent=MMENGINE_MODEL_WRAPPERS,
                          locations=['us3l_mm.engine'])
HOOKS = Registry('hook', scope='us3l_mm', parent=MMENGINE_HOOKS,
                 locations=['us3l_mm.engine'])
OPTIM_WRAPPERS = Registry('optimizer wrapper', scope='us3l_mm',
                          parent=MMENGINE_OPTIM_WRAPPERS,
                          locations=['us3l_mm.engine'])
LOOPS = Registry('loop', scope='us3l_mm', parent=MMENGINE_LOOPS,
                 locations=['us3l_mm.engine'])
DATASETS = Registry('dataset', scope='us3l_mm', parent=MMENGINE_DATASETS,
                    locations=['us3l_mm.datasets'])
DATA_SAMPLERS = Registry('data sampler', scope='us3l_mm',
                         parent=MMENGINE_DATA_SAMPLERS,
                         locations=['us3l_mm.datasets'])
TRANSFORMS = Registry('transform', scope='us3l_mm', parent=MMENGINE_TRANSFORMS,
                      locations=['us3l_mm.datasets'])
