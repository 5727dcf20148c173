# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""SimCLR and BYOL as the examples of the package lightly have them."""
from copy import deepcopy

import torch
from mmpretrain.models import CosineSimilarityLoss
from script import Script, features_of

from us3l_mm.export import slice_network
from us3l_mm.models import InfoNCELoss, US3LAlgorithm

try:
    from lightly.loss import NegativeCosineSimilarity, NTXentLoss
    from lightly.models.modules import (BYOLPredictionHead, BYOLProjectionHead,
                                        SimCLRProjectionHead)
    from lightly.models.utils import deactivate_requires_grad, update_momentum
except ImportError as error:
    raise ImportError(
        f'--against lightly needs the package lightly ({error}). Install it: '
        "pip install lightly, or pip install 'us3l_mm[benchmark]'.") from error


class LightlySimCLR(Script):
    """SimCLR; the projector has the sizes of the recipe.

    Args:
        algorithm (US3LAlgorithm): Ours, with InfoNCE as the base loss.
        wrapper (OptimWrapper): Ours.
    """

    has_teacher = False

    def __init__(self, algorithm, wrapper):
        super().__init__(wrapper)
        self.backbone = full_backbone(algorithm)
        self.projection_head = SimCLRProjectionHead(*sizes(algorithm.neck),
                                                    depth(algorithm.neck))
        self.criterion = NTXentLoss(algorithm.head.loss_module.temperature)
        self.to(next(algorithm.parameters()).device)
        self.set_up()

    def forward(self, views):
        """A training step on two ``views``, each (N, 3, H, W)."""
        with self.precision():
            z0, z1 = (self.projection_head(features_of(self.backbone, view))
                      for view in views)
            loss = self.criterion(z0, z1)
        self.update(loss)


class LightlyBYOL(Script):
    """BYOL; hidden and output sizes are those of the recipe.

    Args:
        algorithm (US3LAlgorithm): Ours, with cosines as the base loss.
        wrapper (OptimWrapper): Ours.
    """

    has_teacher = True

    def __init__(self, algorithm, wrapper):
        super().__init__(wrapper)
        self.backbone = full_backbone(algorithm)
        self.projection_head = BYOLProjectionHead(*sizes(algorithm.neck))
        self.prediction_head = BYOLPredictionHead(
            *sizes(algorithm.head.predictor))
        self.backbone_momentum = deepcopy(self.backbone)
        self.projection_head_momentum = deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NegativeCosineSimilarity()
        self.kept = 1 - algorithm.teacher.momentum
        self.to(next(algorithm.parameters()).device)
        self.set_up()

    @torch.no_grad()
    def forward_momentum(self, view):
        features = features_of(self.backbone_momentum, view)
        return self.projection_head_momentum(features).detach()

    def predict(self, view):
        features = features_of(self.backbone, view)
        return self.prediction_head(self.projection_head(features))

    def forward(self, views):
        """A training step on two ``views``, each (N, 3, H, W)."""
        update_momentum(self.backbone, self.backbone_momentum, self.kept)
        update_momentum(self.projection_head, self.projection_head_momentum,
                        self.kept)
        with self.precision():
            p0, p1 = map(self.predict, views)
            z0, z1 = map(self.forward_momentum, views)
            loss = 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))
        self.update(loss)


def method_like(algorithm, wrapper):
    """The method of lightly that ``algorithm`` has as its base method.

    Raises:
        ValueError: If it is neither SimCLR nor BYOL.
    """
    loss = getattr(algorithm.head, 'loss_module', None)
    base_from = getattr(algorithm, 'base_from', None)
    if isinstance(algorithm, US3LAlgorithm) and base_from == 'teacher':
        if isinstance(loss, InfoNCELoss):
            return LightlySimCLR(algorithm, wrapper)
        if isinstance(loss, CosineSimilarityLoss):
            return LightlyBYOL(algorithm, wrapper)
    raise ValueError(
        "--against lightly takes US3L with base_from='teacher' on SimCLR "
        '(InfoNCELoss) or BYOL (CosineSimilarityLoss), got a '
        f'{type(algorithm).__name__} with base_from={base_from!r} and '
        f'{type(loss).__name__}. Give such a recipe, for instance '
        'configs/us3l/us3l_resnet18_4xb128-coslr-400e_cifar10.py.')


def full_backbone(algorithm):
    """The plain backbone of full width, channels first."""
    backbone = slice_network(algorithm.backbone, 1.0, without_statistics=True)
    return backbone.to(memory_format=torch.contiguous_format)


def sizes(neck):
    """Numbers of features: input, hidden, output."""
    return (neck.fc0.in_features, neck.fc0.out_features,
            getattr(neck, f'fc{depth(neck) - 1}').out_features)


def depth(neck):
    """The number of linear layers."""
    return sum(name.startswith('fc') for name, _ in neck.named_children())
