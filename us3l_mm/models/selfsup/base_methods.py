# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The self-supervised methods that US3L can stand on, as one table.

Sizes are those of US3L, arXiv 2303.06870: every linear layer of projectors
and predictors is followed by batch norm and ReLU except the last one.
"""
from dataclasses import dataclass
from typing import Optional

from us3l_mm.models.necks import FULL_WIDTH_NORM

LOSSES = {
    # -cos(pred, target)
    'cosine': dict(type='mmpretrain.CosineSimilarityLoss'),
    # mean squared error over all elements
    'mse': dict(type='mmpretrain.PixelReconstructionLoss', criterion='L2'),
    'info_nce': dict(type='us3l_mm.InfoNCELoss', temperature=0.5),
    'moco_v3': dict(type='us3l_mm.MoCoV3Loss', temperature=0.2),
}


@dataclass(frozen=True)
class BaseMethod:
    """One row of the table.

    Attributes:
        neck (dict): Of the projector: ``num_layers``, default channels, the
            last norm.
        predictor (dict, optional): Of the base pass; None for none.
        distill_predictor (dict): Of the distillation passes.
        loss (str): Base loss, a key of ``LOSSES``.
        has_teacher (bool): Whether base targets come from a momentum teacher,
            or from the student itself (stop-gradient).
        distill_loss (str): Of the distillation passes, a key of ``LOSSES``.
        final_momentum (float, optional): What the teacher's momentum, in
            MMEngine's sense, falls to; None where it stays.
    """

    neck: dict
    predictor: Optional[dict]
    distill_predictor: dict
    loss: str
    has_teacher: bool
    distill_loss: str = 'cosine'
    final_momentum: Optional[float] = None


_NECK = dict(num_layers=3, hid_channels=2048, with_last_bn=False)
_BYOL_PREDICTOR = dict(hid_channels=2048, with_last_bn=False)
# SimSiam, arXiv 2011.10566: a bottleneck of a quarter, biased last layer, and
# a projector that ends in a norm without affine parameters.
_SIMSIAM_NECK = dict(num_layers=3, hid_channels=2048, out_channels=2048,
                     with_last_bn=True, with_last_bn_affine=False)
_SIMSIAM_PREDICTOR = dict(hid_channels=512, with_last_bn=False,
                          with_last_bias=True)
# MoCo v3, arXiv 2104.02057, with the sizes of US3L's run: all multi-layer
# perceptrons end in a norm without affine parameters.
_MOCO_V3_NORM = dict(with_last_bn=True, with_last_bn_affine=False)
_MOCO_V3_PREDICTOR = dict(hid_channels=2048, **_MOCO_V3_NORM)

BASE_METHODS = {
    'simclr_momentum':
    BaseMethod(dict(_NECK, out_channels=256), None,
               dict(hid_channels=2048, with_last_bn=False), 'info_nce', True),
    'byol':
    BaseMethod(dict(_NECK, out_channels=2048), _BYOL_PREDICTOR,
               _BYOL_PREDICTOR, 'cosine', True),
    'simsiam':
    BaseMethod(_SIMSIAM_NECK, _SIMSIAM_PREDICTOR, _SIMSIAM_PREDICTOR, 'cosine',
               False),
    'simsiam_momentum':
    BaseMethod(_SIMSIAM_NECK, _SIMSIAM_PREDICTOR, _SIMSIAM_PREDICTOR, 'cosine',
               True),
    'moco_v3':
    BaseMethod(
        dict(num_layers=3, hid_channels=2048, out_channels=256,
             **_MOCO_V3_NORM), _MOCO_V3_PREDICTOR, _MOCO_V3_PREDICTOR,
        'moco_v3', True, distill_loss='moco_v3', final_momentum=0.0),
}


def get_base_method(name: str) -> BaseMethod:
    """The row called ``name``, or a ValueError that lists the names."""
    if name not in BASE_METHODS:
        raise ValueError(f'base_method is one of {sorted(BASE_METHODS)}, got '
                         f'{name!r}.')
    return BASE_METHODS[name]


def loss_cfg(loss) -> dict:
    """The config of ``loss``, a key of ``LOSSES`` or a config already."""
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(f'A loss is one of {sorted(LOSSES)} or a config '
                             f'dict, got {loss!r}.')
        return dict(LOSSES[loss])
    return loss


def head_cfg(predictor: Optional[dict], channels: int, loss) -> dict:
    """The config of a head: ``predictor`` on ``channels``, then ``loss``."""
    if predictor is None:
        predictor = dict(type='us3l_mm.Identity')
    elif 'type' not in predictor:  # else another module, with its arguments
        stock = dict(type='mmpretrain.NonLinearNeck', in_channels=channels)
        stock.update(out_channels=channels, num_layers=2, with_last_bn=False)
        stock.update(with_avg_pool=False, norm_cfg=FULL_WIDTH_NORM)
        predictor = {**stock, **predictor}
    return dict(type='mmpretrain.LatentPredictHead', predictor=predictor,
                loss=loss_cfg(loss))
