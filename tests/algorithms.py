# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Small algorithms of the package by the name of their base method."""
import torch

from us3l_mm.engine import MultiPassOptimWrapper
from us3l_mm.models import GroupDecay, Plan
from us3l_mm.registry import MODELS

LOSSES = {
    'cosine': dict(type='mmpretrain.CosineSimilarityLoss'),
    'mse': dict(type='mmpretrain.PixelReconstructionLoss', criterion='L2'),
    'info_nce': dict(type='us3l_mm.InfoNCELoss', temperature=0.5),
    'moco_v3': dict(type='us3l_mm.MoCoV3Loss', temperature=0.2), }
PLAIN = dict(with_last_bn=False)
LAST_NORM = dict(with_last_bn=True, with_last_bn_affine=False)
BIASED = dict(with_last_bn=False, with_last_bias=True)
# Ends of projector and predictors, the losses of base and distillation, where
# the targets of the base pass come from, further arguments of the teacher.
METHODS = {
    'simclr_momentum': (PLAIN, PLAIN, 'info_nce', 'cosine', 'teacher', {}),
    'byol': (PLAIN, PLAIN, 'cosine', 'cosine', 'teacher', {}),
    'simsiam': (LAST_NORM, BIASED, 'cosine', 'cosine', 'online', {}),
    'simsiam_momentum': (LAST_NORM, BIASED, 'cosine', 'cosine', 'teacher', {}),
    'moco_v3': (LAST_NORM, LAST_NORM, 'moco_v3', 'moco_v3', 'teacher',
                dict(final_momentum=0.0)), }
RESNET = dict(type='us3l_mm.SlimmableResNet_CIFAR', depth=18, base_channels=16,
              stem_channels=16, num_stages=3, strides=(1, 2, 2),
              dilations=(1, 1, 1), out_indices=(0, 1, 2))


def model_cfg(base_method='byol', backbone=RESNET, hid=24, out=12,
              predictor_hid=20, distill_hid=28, predicts=None, base_loss=None,
              distill_loss=None, distill_from='default', teacher=None,
              **changes):
    """The config of an algorithm; losses are names, or configs."""
    neck, predictor, base, distil, source, momentum = METHODS[base_method]
    if distill_from == 'default':
        distill_from = source
    if predicts is None:
        predicts = base_method != 'simclr_momentum'

    def head(loss, hidden):
        cfg = dict(
            type='us3l_mm.PredictionHead',
            loss=LOSSES.get(loss, loss) if isinstance(loss, str) else loss)
        if hidden is not None:
            cfg['predictor'] = dict(type='us3l_mm.Predictor', in_channels=out,
                                    hid_channels=hidden, out_channels=out,
                                    num_layers=2, **predictor)
        return cfg

    cfg = dict(
        type='us3l_mm.US3LAlgorithm', backbone=backbone, neck=dict(
            type='us3l_mm.SlimmableProjector',
            in_channels=MODELS.build(backbone).feature_channels()[-1],
            hid_channels=hid, out_channels=out, num_layers=3, **neck),
        head=head(base_loss or base, predictor_hid if predicts else None),
        distill_head=None if distill_from is None else head(
            distill_loss or distil,
            None if changes.get('share_predictor') else distill_hid),
        base_from=source, distill_from=distill_from, teacher={
            **momentum,
            **(teacher or {})}, data_preprocessor=dict(mean=[120.] * 3,
                                                       std=[60.] * 3))
    return {**cfg, **changes}


def small_algorithm(base_method='byol', **kwargs):
    """In float64, 16 channels, with random affine parameters."""
    algorithm = MODELS.build(model_cfg(base_method, **kwargs))
    return randomise(algorithm.double().train())


def randomise(module):
    """Random weights, for affine parameters too, the same ones every time."""
    generator = torch.Generator().manual_seed(1)
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        scale = (2 / p[0].numel())**0.5 if p.dim() > 1 else 0.2
        p.data.copy_(noise * scale +
                     (p.dim() == 1 and name.endswith('weight')))
    return module


def student_parameters(algorithm):
    """By name; what the optimizer trains."""
    return {
        name: p for name, p in algorithm.named_parameters() if p.requires_grad}


def sgd(algorithm, lr=0.05, momentum=0.9, regularise=False, **kwargs):
    """A wrapper of an SGD of what the algorithm trains.

    With ``regularise``, the default group regularisation is installed.
    """
    named = student_parameters(algorithm)
    wrapper = MultiPassOptimWrapper(
        optimizer=torch.optim.SGD(named.values(), lr, momentum), **kwargs)
    if regularise:
        wrapper.regularise(GroupDecay(named.items()))
    return wrapper


def train_step(algorithm, data, wrapper, widths=(1.0, ), stage=0,
               progress=0.0):
    """One training step of sampled ``widths``; returns the log."""
    plan = Plan.sampled(widths, stage, progress)
    return algorithm.train_step(dict(data, plan=plan), wrapper)
