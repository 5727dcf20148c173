# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .group_decay import GroupDecay
from .info_nce import InfoNCELoss
from .moco_v3 import MoCoV3Loss
from .similarity_distillation import SimilarityDistillation

__all__ = ['GroupDecay', 'InfoNCELoss', 'MoCoV3Loss', 'SimilarityDistillation']
