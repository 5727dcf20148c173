# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Parameters and multiply-accumulates of the parts of a whole model."""
from copy import deepcopy
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmpretrain.models import BaseSelfSupervisor
from torch import nn

from us3l_mm.export import slice_network
from us3l_mm.models.layers import Subnet, SubnetLike, slimmable_layers
from us3l_mm.registry import MODELS
from .complexity import count_size, image_on_meta
from .loading import model_cfg, set_scope

COUNTED = (
    'Multiply-accumulates (GMACs, 1e9) of convolutions, linear layers and '
    'attention for one image; not of norms, activations, pooling, RoIAlign, '
    'non-maximum suppression. A multiplication and an addition are one.')


@dataclass(frozen=True)
class Part:
    """One part of a model.

    Attributes:
        name (str): The name, such as 'backbone'.
        params (int): Number of parameters (no statistics).
        macs (int): Multiply-accumulates for one image.
        times (int): How often it runs for one image, for instance once for
            each proposal; ``macs`` is the total. Defaults to 1.
    """

    name: str
    params: int
    macs: int
    times: int = 1


@torch.no_grad()
def count_parts(model: nn.Module, shape: Tuple[int, int]) -> List[Part]:
    """The sizes of the parts of ``model``, counted without arithmetic.

    Args:
        model (nn.Module): A detector of MMDetection with one or two stages, a
            classifier of MMPretrain, or a pre-training algorithm that has
            been sliced.
        shape (tuple[int, int]): Height and width of the image in pixels.

    Raises:
        ValueError: If the heads of the model take other inputs than these.
    """
    model = revert_sync_batchnorm(deepcopy(model)).to('meta').eval()
    counter = _Counter()
    maps = counter.run('backbone', model.backbone, image_on_meta(shape))
    if getattr(model, 'neck', None) is not None:
        maps = counter.run('neck', model.neck, maps)
    if hasattr(model, 'roi_head'):
        _count_two_stages(counter, model, maps)
    elif hasattr(model, 'bbox_head'):
        counter.run('box head', model.bbox_head, maps)
    else:
        for name in ('head', 'distill_head'):
            head = getattr(model, name, None)
            if isinstance(model, BaseSelfSupervisor):
                head = getattr(head, 'predictor', None)
            if head is not None:
                counter.run(name.replace('_', ' '), head, maps)
    # A neck that only pools has nothing to count.
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
    """Runs modules one after the other and lists their sizes."""

    def __init__(self) -> None:
        self.parts: List[Part] = []

    def run(self, name: str, module: nn.Module, inputs, times: int = 1):
        """Append the size of ``module``; returns its outputs."""
        size, outputs = count_size(module, inputs)
        self.parts.append(Part(name, size.params, size.macs * times, times))
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


def count_config(config: Config, shape: Tuple[int, int],
                 subnets: Optional[Sequence[SubnetLike]] = None
                 ) -> Dict[Subnet, List[Part]]:
    """The parts of the model of ``config`` at each of ``subnets``.

    A slimmable network is sliced. A config of one width is built for another
    width: by ``width`` of a backbone that has this argument, or by
    ``base_channels`` and ``stem_channels`` of a stock ResNet and the
    ``in_channels`` of what follows it.

    Args:
        config (Config): The config of a detector, a classifier or a
            pre-training.
        shape (tuple[int, int]): Height and width of the image in pixels.
        subnets (sequence, optional): The sub-networks, or their widths.
            Defaults to the width of the config; for a slimmable network, to
            the ends of its range.

    Raises:
        ValueError: If the model does not have one of ``subnets``.
    """
    set_scope(config)
    model = MODELS.build(ConfigDict(model_cfg(config)))
    slimmable = any(slimmable_layers(model.backbone))
    if not subnets and not slimmable:
        return {_own_subnet(config): count_parts(model, shape)}
    return {
        subnet:
        count_parts(
            slice_network(model, subnet, without_statistics=True) if slimmable
            else _rebuilt(config, subnet), shape) for subnet in map(
                Subnet.of, subnets or model.backbone.width_range[::-1])}


def _own_subnet(config: Config) -> Subnet:
    backbone = config.model.backbone
    if 'width' in backbone:
        return Subnet.of(backbone.width)
    return Subnet(min(1.0, backbone.get('base_channels', 64) / 64))


def _rebuilt(config: Config, subnet: Subnet) -> nn.Module:
    """The model of ``config`` built for another width."""
    config = deepcopy(config)
    model, backbone = config.model, config.model.backbone
    if subnet.gated:
        raise ValueError(f'{backbone.type} has no gates. Use a width.')
    if 'width' in backbone:
        allowed = backbone.get('width_range', (0.25, 1.0))
        backbone.width = subnet.check(allowed).width
        return MODELS.build(ConfigDict(model_cfg(config)))
    if not backbone.type.split('.')[-1].startswith('ResNet'):
        raise ValueError(
            f'{backbone.type} has no width to change. Leave out --widths, or '
            'use a config with us3l_mm.SlimmableResNet.')
    channels, old = 64 * subnet.width, backbone.get('base_channels', 64)
    if channels <= 0 or channels % 8:
        raise ValueError(
            f'The widths of a stock {backbone.type} are multiples of 1/8, got '
            f'{subnet.width:g}. Use us3l_mm.SlimmableResNet('
            f'width={subnet.width:g}).')
    channels = int(channels)
    backbone.update(base_channels=channels, stem_channels=channels)
    for part in (model.get('neck'), model.get('head')):
        given = part.get('in_channels') if part else None
        if isinstance(given, (list, tuple)):
            part.in_channels = [c * channels // old for c in given]
        elif given:
            part.in_channels = given * channels // old
    return MODELS.build(ConfigDict(model_cfg(config)))
