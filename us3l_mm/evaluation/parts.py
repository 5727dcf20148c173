# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Parameters and multiply-accumulates of the parts of a whole model."""
from copy import deepcopy
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from us3l_mm.models.backbones.narrow import cut_layers
from us3l_mm.models.layers import Subnet, slimmable_layers
from us3l_mm.registry import MODELS
from .loading import model_cfg, set_scope

COUNTED = (
    'Multiply-accumulates (GMACs, 1e9) of convolutions, linear layers and '
    'attention for one image; not of norms, activations, pooling, RoIAlign, '
    'non-maximum suppression. A multiplication and an addition are one.')


@dataclass(frozen=True)
class Part:
    """One part of a model.

    Attributes:
        name (str): Such as 'backbone'.
        params (int): Number of parameters (no statistics).
        macs (int): Multiply-accumulates for one image.
        times (int): How often it runs for one image, which ``macs`` includes;
            a box head runs once per proposal. Defaults to 1.
    """

    name: str
    params: int
    macs: int
    times: int = 1


@torch.no_grad()
def count_parts(model: nn.Module, shape: Tuple[int, int]) -> List[Part]:
    """The parts of ``model``, counted without any arithmetic (meta device).

    Args:
        model (nn.Module): A detector of MMDetection with one or two stages, a
            classifier of MMPretrain, or a pre-training algorithm whose layers
            have been cut to one width.
        shape (tuple[int, int]): Height and width of the image in pixels.

    Raises:
        ValueError: for a model whose heads take something else.
    """
    model = revert_sync_batchnorm(deepcopy(model)).to('meta').eval()
    counter = _Counter()
    maps = counter.run('backbone', model.backbone,
                       torch.empty(1, 3, *shape, device='meta'))
    if getattr(model, 'neck', None) is not None:
        maps = counter.run('neck', model.neck, maps)
    if hasattr(model, 'roi_head'):
        _count_two_stages(counter, model, maps)
    elif hasattr(model, 'bbox_head'):
        counter.run('box head', model.bbox_head, maps)
    elif hasattr(model, 'distill_head'):  # pre-training
        for name in ('head', 'distill_head'):
            predictor = getattr(getattr(model, name), 'predictor', None)
            if predictor is not None:
                counter.run(name.replace('_', ' '), predictor, maps)
    elif getattr(model, 'head', None) is not None:
        counter.run('head', model.head, maps)
    # A pooling neck is no part worth a column.
    return [part for part in counter.parts if part.params or part.macs]


def _count_two_stages(counter: '_Counter', model: nn.Module, maps) -> None:
    """A region proposal network, and heads that run once per region."""
    roi_head, limits = model.roi_head, model.test_cfg
    if getattr(roi_head, 'with_shared_head', False):
        raise ValueError(
            f'{type(roi_head).__name__} shares a stage of the backbone '
            "between its heads, which is not counted here. Use MMDetection's "
            'tools/analysis_tools/get_flops.py.')
    if getattr(model, 'rpn_head', None) is not None:
        counter.run('proposals', model.rpn_head, maps)
    counter.run_regions('box head', roi_head.bbox_head,
                        roi_head.bbox_roi_extractor, limits.rpn.max_per_img)
    if getattr(roi_head, 'with_mask', False):
        counter.run_regions(
            'mask head', roi_head.mask_head, roi_head.mask_roi_extractor
            or roi_head.bbox_roi_extractor, limits.rcnn.max_per_img)


class _Counter:
    """Runs modules and notes what they cost."""

    def __init__(self):
        self.parts: List[Part] = []

    def run(self, name: str, module: nn.Module, inputs, times: int = 1):
        """The outputs of ``module``, whose cost is noted."""
        with FlopCounterMode(display=False) as flops:
            outputs = module(inputs)
        self.parts.append(
            Part(name, sum(p.numel() for p in module.parameters()),
                 flops.get_total_flops() // 2 * times, times))
        return outputs

    def run_regions(self, name: str, head: nn.Module, extractor,
                    regions: int) -> None:
        """A head, or those of a cascade, on ``regions`` regions."""
        cascade = isinstance(head, nn.ModuleList)
        for index, each in enumerate(head if cascade else [head]):
            source = extractor[index] if cascade else extractor
            size = source.roi_layers[0].output_size
            self.run(f'{name} {index + 1}' if cascade else name, each,
                     torch.empty(1, source.out_channels, *size, device='meta'),
                     regions)


def count_config(
        config: Config, shape: Tuple[int, int],
        widths: Optional[Sequence[float]] = None) -> Dict[float, List[Part]]:
    """The parts of the model of ``config`` at each width.

    A slimmable network is cut. In a config of one width the width is changed:
    ``width`` of a backbone that has it, or ``base_channels`` and
    ``stem_channels`` of a stock ResNet, and what follows them in the neck.

    Args:
        config (Config): Of a detector, a classifier or a pre-training.
        shape (tuple[int, int]): Height and width of the image in pixels.
        widths (sequence[float], optional): Defaults to that of the config; of
            a slimmable network to the ends of its range.

    Raises:
        ValueError: if the model has no such widths.
    """
    set_scope(config)
    model = MODELS.build(ConfigDict(model_cfg(config)))
    if any(slimmable_layers(model.backbone)):
        allowed = model.backbone.width_range
        widths = [
            Subnet.of(width).check(allowed).width
            for width in widths or sorted(allowed, reverse=True)
        ]
        return {
            width: count_parts(_cut(model, width), shape)
            for width in widths
        }
    if not widths:
        return {_own_width(config): count_parts(model, shape)}
    return {
        width: count_parts(_rebuilt(config, width), shape)
        for width in widths
    }


def _cut(model: nn.Module, width: float) -> nn.Module:
    model = deepcopy(model)
    cut_layers(model, width)
    return model


def _own_width(config: Config) -> float:
    backbone = config.model.backbone
    return float(backbone.get('width', backbone.get('base_channels', 64) / 64))


def _rebuilt(config: Config, width: float) -> nn.Module:
    """The model of ``config`` built for another width."""
    config = deepcopy(config)
    model = config.model
    if 'width' in model.backbone:
        _change_width(model, width)
    else:
        _change_channels(model, width)
    return MODELS.build(ConfigDict(model_cfg(config)))


def _change_width(model: dict, width: float) -> None:
    low, high = model.backbone.get('width_range', (0.25, 1.0))
    model.backbone.width = Subnet.of(width).check((low, high)).width


def _change_channels(model: dict, width: float) -> None:
    if not model.backbone.type.split('.')[-1].startswith('ResNet'):
        raise ValueError(
            f'{model.backbone.type} has no width to change. Leave out '
            '--widths, or use a config with us3l_mm.SlimmableResNet.')
    channels = 64 * width
    if channels != int(channels) or channels <= 0 or channels % 8:
        raise ValueError(
            f'A stock {model.backbone.type} has widths that are multiples of '
            f'1/8, got {width:g}; us3l_mm.SlimmableResNet(width={width:g}) '
            'has others too.')
    channels, old = int(channels), model.backbone.get('base_channels', 64)
    model.backbone.update(base_channels=channels, stem_channels=channels)
    for part in (model.get('neck'), model.get('head')):
        given = part and part.get('in_channels')
        if given:
            part.in_channels = ([c * channels // old for c in given]
                                if isinstance(given,
                                              (list, tuple)) else given *
                                channels // old)
