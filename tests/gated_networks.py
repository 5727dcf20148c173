# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Small gated networks and what trains them, by the name of the base loss."""
from copy import deepcopy

import torch
from algorithms import randomise

from us3l_mm.models.layers import gate
from us3l_mm.registry import MODELS

HIDDEN, OUT = 24, 12
RESNET = dict(type='us3l_mm.GatedResNet_CIFAR', depth=18, base_channels=16,
              stem_channels=16, num_stages=2, strides=(1, 2), dilations=(1, 1),
              out_indices=(1, ))
PREDICTOR = dict(type='us3l_mm.Predictor', in_channels=OUT, hid_channels=20,
                 out_channels=OUT, num_layers=2, with_last_bn=False)
HEADS = dict(
    vicreg=dict(loss=dict(type='us3l_mm.VICRegLoss')),
    barlow_twins=dict(loss=dict(type='us3l_mm.BarlowTwinsLoss')), simsiam=dict(
        loss=dict(type='mmpretrain.CosineSimilarityLoss'),
        predictor=PREDICTOR), simclr=dict(loss=dict(
            type='us3l_mm.InfoNCELoss', temperature=0.2, detach_target=False)))


def model_cfg(head='vicreg', backbone=RESNET, budget='default', **changes):
    """The config of an algorithm whose backbone ends in 32 channels.

    It is a copy, which a test may change.
    """
    neck = dict(type='us3l_mm.SlimmableProjector', in_channels=32,
                hid_channels=HIDDEN, out_channels=OUT, num_layers=3,
                with_last_bn=False)
    if budget == 'default':
        budget = dict(target=0.5)
    return deepcopy(
        dict(type='us3l_mm.DenseGatedSSL', backbone=backbone, neck=neck,
             head=dict(type='us3l_mm.PairHead',
                       **HEADS[head]), budget=budget, data_preprocessor=dict(
                           mean=[120.] * 3, std=[60.] * 3), **changes))


def small_gated(head='vicreg', **kwargs):
    """In float64, with random parameters."""
    algorithm = MODELS.build(model_cfg(head, **kwargs)).double().train()
    randomise(algorithm)
    return algorithm


class FixedNoise:
    """Noise of the gates that is a function of the order of their calls."""

    def __init__(self, monkeypatch, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn = []
        monkeypatch.setattr(gate, 'logistic_noise', self)

    def __call__(self, like):
        u = torch.rand(like.shape, generator=self.generator,
                       dtype=torch.float64)
        self.drawn.append((u / (1 - u)).log())
        return self.drawn[-1].to(like)
