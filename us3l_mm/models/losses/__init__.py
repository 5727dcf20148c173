# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .barlow_twins import BarlowTwinsLoss
from .compute_budget import ComputeBudget
from .group_decay import GroupDecay
from .info_nce import InfoNCELoss
from .moco_v3 import MoCoV3Loss
from .similarity_distillation import SimilarityDistillation
from .vicreg import VICRegLoss

__all__ = [
    'BarlowTwinsLoss', 'ComputeBudget', 'GroupDecay', 'InfoNCELoss',
    'MoCoV3Loss', 'SimilarityDistillation', 'VICRegLoss']
