# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Files of the authors' SlimCLR code as checkpoints of ours."""
import re
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

import torch
from torch import nn

from us3l_mm.fileio import check_fit
from us3l_mm.models.layers import Subnet
from us3l_mm.registry import MODELS
from .foreign import State, stored
from .slimclr_layout import (ALONE, Parts, backbone_arguments,
                             backbone_weights, below, read_mlp, rounding,
                             widths_of)

# Of each method: its name, and the arguments of the algorithm that weights do
# not show, as in the authors' recipes.
METHODS: Dict[str, Tuple[str, dict]] = {
    'mocov2': ('MoCo v2',
               dict(key_norms='shuffled', teacher=dict(momentum=0.001))),
    'mocov3': ('MoCo v3',
               dict(sync_norms=True, teacher=dict(momentum=0.01,
                                                  final_momentum=0.0))),
    'simclr': ('SimCLR', dict(sync_norms=True)),
    'probe': ('Linear evaluation', {})}
# Configs of the network that the authors train.
AUTHORS = dict(
    type='us3l_mm.SlimmableResNet', depth=50, norm_cfg=dict(
        type='SwitchableBN', subnets=[1.0, 0.75, 0.5, 0.25]))
CONFIGS = {
    'mocov2':
    'slimclr-mocov2_resnet50_4xb256-coslr-200e_in1k.py',
    'mocov3':
    'slimclr-mocov3_resnet50_8xb128-coslr-300e_in1k.py',
    'simclr':
    'slimclr-simclr_resnet50_8xb128-coslr-100e_in1k.py',
    'probe':
    'benchmarks/'
    'linear-all-widths-mocov2_resnet50_4xb256-steplr-100e_in1k.py'}


@dataclass(frozen=True)
class ConvertedSlimCLR:
    """A file of the authors as a checkpoint of ours.

    Attributes:
        model (dict): The config of the algorithm or the classifier, or of a
            model with nothing but the backbone.
        weights (dict[str, Tensor]): Its state dict.
        method (str, optional): A key of ``METHODS``; None for a backbone
            alone.
        subnets (list[Subnet]): The widths, each with norms of its own.
        left_out (list[str]): Parts of the file that have no place in the
            model.
    """

    model: dict
    weights: State
    method: Optional[str]
    subnets: List[Subnet]
    left_out: List[str]

    def checkpoint(self, source: dict) -> dict:
        """The content of a checkpoint of MMEngine.

        Args:
            source (dict): Where the weights are from.
        """
        return stored(self.model, self.weights, source)

    @property
    def config(self) -> Optional[str]:
        """The name of our config of this network and method, if there is."""
        if self.method is None or self.model['backbone'] != AUTHORS:
            return None
        shared = self.model['head'].get('shared', False)
        kind = 'shared' if shared else 'all-widths'
        return CONFIGS[self.method].replace('all-widths', kind)

    def summary(self) -> str:
        """What was converted, for the person who converts it."""
        lines = ['The backbone alone.']
        if self.method is not None:
            path = f'configs/slimclr/{self.config}' if self.config else (
                'none of ours is of this network; the one in the file is')
            lines = [f'{METHODS[self.method][0]}.', f'Config: {path}.']
        return '\n'.join([
            *lines, f'Backbone: {self.model["backbone"]}.',
            f'Widths: {", ".join(map(str, self.subnets))}.',
            'Left out: ' + (', '.join(self.left_out) or 'nothing')])


def from_slimclr(checkpoint: dict,
                 backbone_only: bool = False) -> ConvertedSlimCLR:
    """Convert a file of the authors' SlimCLR code.

    Args:
        checkpoint (dict): The content of the file, of which ``state_dict`` is
            read.
        backbone_only (bool): Whether to convert the student's backbone and
            nothing else. Defaults to False.

    Raises:
        ValueError: If the file is of another network or method, or incomplete.
    """
    parts = Parts.of(checkpoint['state_dict'])
    subnets = parts.subnets()
    backbone = backbone_arguments(parts.student, subnets)
    method = None if backbone_only else parts.method(subnets)
    given = {
        f'backbone.{key}': value
        for key, value in backbone_weights(parts.student, subnets).items()}
    model: dict = dict(backbone=backbone)
    if method == 'probe':
        model = _classifier(backbone, parts, subnets, given)
    elif method is not None:
        model = _algorithm(method, backbone, parts, subnets, given)
    return ConvertedSlimCLR(model, _checked(model, given), method, subnets,
                            parts.left_out(method))


def _algorithm(method: str, backbone: dict, parts: Parts,
               subnets: List[Subnet], given: State) -> dict:
    """The config of the algorithm; its weights are added to ``given``."""
    neck, projector = read_mlp(below(parts.student, 'fc.'),
                               f'{parts.names[0]}fc', subnets)
    given.update({f'neck.{key}': value for key, value in projector.items()})
    head: dict = dict(type='us3l_mm.SimCLRContrast')
    if method == 'mocov2':
        head = dict(type='us3l_mm.MoCoV2Contrast',
                    channels=parts.others['queue'].shape[0],
                    queue_length=parts.others['queue'].shape[1])
        given['head.queue'] = parts.others['queue'].t().contiguous()
        if 'queue_ptr' in parts.others:
            given['head.queue_ptr'] = parts.others['queue_ptr'].reshape(())
    elif method == 'mocov3':
        predictor, weights = read_mlp(below(parts.others, 'predictor.'),
                                      'predictor', subnets)
        head = dict(
            type='us3l_mm.MoCoV3Contrast', predictor=dict(
                type='us3l_mm.Predictor', **predictor,
                **rounding(subnets, predictor['hid_channels'])))
        given.update({
            f'head.predictor.{key}': value for key, value in weights.items()})
    if parts.teacher:
        _, projector = read_mlp(below(parts.teacher, 'fc.'),
                                f'{parts.names[1]}fc', subnets)
        teacher = {
            **{
                f'backbone.{key}': value for key, value in backbone_weights(
                    parts.teacher, subnets).items()},
            **{
                f'neck.{key}': value for key, value in projector.items()}}
        # It runs the full network alone, whose norms have plain keys.
        given.update({
            f'teacher.{key}': value for key, value in teacher.items()
            if not re.search(r'\.w\d{7}\.\w+$', key)})
    temperature = 1.0 if method == 'mocov3' else 5.0
    return dict(
        type='us3l_mm.SlimCLR', backbone=backbone, neck=dict(
            type='us3l_mm.SlimmableProjector', **neck), head=head,
        distill=dict(type='us3l_mm.SimilarityDistillation',
                     temperature=temperature), **METHODS[method][1])


def _classifier(backbone: dict, parts: Parts, subnets: List[Subnet],
                given: State) -> dict:
    """The config of a classifier; its weights are added to ``given``."""
    places = parts.classifiers(subnets)
    for place, subnet in zip(places, subnets):
        given.update({
            f'head.linears.{subnet.key or "w1000000"}.{key}': value
            for key, value in below(parts.student, place).items()})
    return dict(
        type='us3l_mm.AllWidthsClassifier', backbone=backbone,
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='us3l_mm.SwitchableLinearHead', num_classes=len(
            parts.student[f'{places[0]}weight']), widths=widths_of(subnets),
                  distill_weight=0.5, shared=len(places) < len(subnets)))


def _checked(model: dict, given: State) -> State:
    """``given`` as the state dict of ``model``; ValueError if it is none."""
    network = MODELS.build(model) if 'type' in model else nn.ModuleDict(
        dict(backbone=MODELS.build(model['backbone'])))
    own = network.state_dict()
    for key in own:
        if key.endswith('num_batches_tracked'):  # not in older files
            given.setdefault(key, torch.tensor(1))
    unknown = [key for key in given if key not in own]
    if unknown:
        raise ValueError(
            'The file is of another network: under our names it has '
            f'{", ".join(unknown[:3])}, for which there is no place in a '
            f'{model.get("type", model["backbone"]["type"])}. {ALONE}')
    check_fit(own, given, str(model.get('type', model['backbone']['type'])),
              'The file is of another network, or incomplete.', 'The file')
    return {key: given[key] for key in own}
