# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Conversion of pre-training files of the authors' US3L code."""
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

from torch import nn

from us3l_mm.fileio import check_fit
from us3l_mm.models.layers import Subnet, SubnetLike
from us3l_mm.registry import MODELS
from .foreign import stored, take_statistics
from .us3l_layout import MLP, STATISTICS, Parts, State, backbone_arguments

STEMS = ('cifar', 'imagenet')
MOBILENET = 'us3l_mm.SlimmableMobileNetV2'
INFO_NCE = dict(loss=dict(type='us3l_mm.InfoNCELoss', temperature=0.5))
COSINE = dict(loss=dict(type='mmpretrain.CosineSimilarityLoss'))
MOCO_V3 = dict(loss=dict(type='us3l_mm.MoCoV3Loss', temperature=0.2),
               weight=1.0)  # the two directions are added
TEACHER = dict(momentum=0.01)
# For each base method: its name, its base and distillation heads without
# predictors, and further arguments of the algorithm.
METHODS: Dict[str, Tuple[str, dict, dict, dict]] = {
    'simclr-momentum': ('SimCLR with a momentum teacher', INFO_NCE, COSINE,
                        dict(teacher=TEACHER)),
    'byol': ('BYOL', COSINE, COSINE, dict(teacher=TEACHER)),
    'simsiam': ('SimSiam', COSINE, COSINE,
                dict(base_from='online', distill_from='online')),
    'simsiam-momentum': ('SimSiam with a momentum teacher', COSINE, INFO_NCE,
                         dict(teacher=TEACHER)),
    'mocov3': ('MoCo v3', MOCO_V3, MOCO_V3,
               dict(teacher=dict(TEACHER, final_momentum=0.0),
                    sync_norms=True)), }
# Config files by base method, class, and depth or architecture.
CONFIGS = {
    ('simclr-momentum', 'SlimmableResNet_CIFAR', 18):
    'us3l_resnet18_4xb128-coslr-400e_cifar10.py',
    ('simclr-momentum', 'SlimmableResNet_CIFAR', 50):
    'us3l_resnet50_8xb64-coslr-400e_cifar10.py',
    ('simclr-momentum', 'SlimmableMobileNetV2_CIFAR', None):
    'us3l_mobilenet-v2_4xb128-coslr-400e_cifar10.py',
    ('byol', 'SlimmableResNet_CIFAR', 18):
    'us3l-byol_resnet18_4xb128-coslr-400e_cifar10.py',
    ('byol', 'SlimmableResNet', 18): 'us3l_resnet18_8xb128-coslr-100e_in1k.py',
    ('byol', 'SlimmableResNet', 50): 'us3l_resnet50_8xb60-coslr-100e_in1k.py',
    ('byol', 'SlimmableMobileNetV2', None):
    'us3l_mobilenet-v2_8xb128-coslr-100e_in1k.py',
    ('simsiam', 'SlimmableResNet_CIFAR', 18):
    'us3l-simsiam_resnet18_4xb128-coslr-400e_cifar10.py',
    ('simsiam-momentum', 'SlimmableResNet_CIFAR', 18):
    'us3l-simsiam-momentum_resnet18_4xb128-coslr-400e_cifar10.py',
    ('simsiam-momentum', 'SlimmableResNet', 18):
    'us3l-simsiam-momentum_resnet18_8xb128-coslr-100e_in1k.py',
    ('simsiam-momentum', 'SlimmableResNet', 50):
    'us3l-simsiam-momentum_resnet50_8xb64-coslr-100e_in1k.py',
    ('mocov3', 'SlimmableViT', 'tiny'):
    'us3l_vit-tiny_8xb64-coslr-300e_cifar10.py',
    ('mocov3', 'SlimmableViT', 'small'):
    'us3l_vit-small_16xb256-coslr-300e_in1k.py',
    ('mocov3', 'SlimmableViT', 'base'):
    'us3l_vit-base_16xb256-coslr-300e_in1k.py'}
ALONE = ('To convert the backbone alone, pass --backbone-only '
         '(backbone_only=True).')


@dataclass(frozen=True)
class ConvertedUS3L:
    """A file of the authors, converted to a checkpoint of this project.

    Attributes:
        model (dict): The config of the algorithm, or of a model that has only
            a backbone.
        weights (dict[str, Tensor]): The state dict of the model.
        method (str, optional): The base method, a key of ``METHODS``; None
            for a backbone alone.
        config (str, optional): The name of the config file for the same
            network, base method and data.
        measured (list[Subnet]): The sub-networks with batch-norm statistics.
        remarks (list[str]): The assumptions of the conversion.
        unused_statistics (list[str]): The norms in the file whose running
            statistics are not used.
        left_out (list[str]): The parts of the file that the model does not
            have.
    """

    model: dict
    weights: State
    method: Optional[str]
    config: Optional[str]
    measured: List[Subnet]
    remarks: List[str]
    unused_statistics: List[str]
    left_out: List[str]

    def checkpoint(self, source: dict) -> dict:
        """The content of a checkpoint of MMEngine.

        Args:
            source (dict): Where the weights are from.
        """
        return stored(self.model, self.weights, source)

    def summary(self) -> str:
        """A summary of the conversion for the user."""
        lines = ['The backbone alone.']
        if self.method is not None:
            path = f'configs/us3l/{self.config}' if self.config else (
                'none of ours is of this network and base method; the one in '
                'the file is')
            lines = [f'{METHODS[self.method][0]}.', f'Config: {path}.']
        return '\n'.join([
            *lines, f'Backbone: {self.model["backbone"]}.', 'Statistics: ' +
            (', '.join(map(str, self.measured)) or 'none, calibrate') + '.',
            *self.remarks, 'Running statistics not used: ' +
            (', '.join(self.unused_statistics) or 'none'),
            'Left out: ' + (', '.join(self.left_out) or 'nothing')])


def from_us3l(checkpoint: dict, calibrated: Optional[Dict[SubnetLike,
                                                          State]] = None,
              method: Optional[str] = None, stem: Optional[str] = None,
              backbone_only: bool = False) -> ConvertedUS3L:
    """Convert a pre-training file of the authors' US3L code.

    That code trains without running statistics. After calibrating a width, it
    writes a file of the whole network in which the leading entries of the
    running statistics are those of the width.

    Args:
        checkpoint (dict): The content of the file: ``state_dict`` and,
            optionally, ``arch``.
        calibrated (dict, optional): The state dicts of calibrated files by
            width. Defaults to none.
        method (str, optional): The base method, a key of ``METHODS``. Defaults
            to the one that the predictors in the file determine.
        stem (str, optional): The strides of a MobileNetV2, 'cifar' or
            'imagenet', which weights do not show. Defaults to a choice by
            ``arch`` or the base method.
        backbone_only (bool): Whether to convert only the student's backbone.
            Defaults to False.

    Raises:
        ValueError: If the file is of another network or incomplete, if its
            base method cannot be recognised, or if a calibrated file has other
            weights.
    """
    state = checkpoint['state_dict']
    parts = Parts.of(state)
    arguments = backbone_arguments(parts.student)
    heads = None if backbone_only else Heads.of(parts, method)
    if heads is not None:
        method = heads.method
    remarks = [] if heads is None else list(heads.remarks)
    remarks += set_stem(arguments, stem, str(checkpoint.get('arch', '')),
                        method)
    backbone = MODELS.build(arguments)
    _load(backbone, parts.student, f'The student ({parts.names[0]})')
    measured = []
    for width, other in (calibrated or {}).items():
        measured.append(Subnet.of(width).check(backbone.width_range))
        take_statistics(backbone, Parts.of(other).student, measured[-1])
    if measured and arguments['type'].startswith(MOBILENET):
        remarks.append(
            "The last norm (features.18.1) of the authors' network is not "
            'slimmable, so its running statistics in training are averages '
            'over widths. The ones in the file of a width are used for it.')
    model: dict = dict(backbone=arguments)
    config = None
    weights = nn.ModuleDict(dict(backbone=backbone)).state_dict()
    used: Optional[List[str]] = None
    if heads is not None:
        projections, modules = find_projections(parts, backbone)
        model = heads.model(arguments, modules)
        weights = assemble(model, backbone, parts, heads,
                           projections).state_dict()
        config = find_config(heads.method, arguments)
        used = [*(mlp.name for mlp in heads.predictors), *projections]
        if projections:
            remarks.append(
                f'The 1x1 convolutions {", ".join(projections)} are assumed '
                'to be the projections of feature distillation from '
                f'{", ".join(modules)}.')
    left_out = parts.left_out(
        {name.split('.')[0] for name, _ in backbone.named_parameters()}, used)
    unused = {
        key.rsplit('.', 1)[0] for key in state
        if key.endswith(STATISTICS) and not any(
            key.startswith(f'{part}.') for part in left_out)}
    return ConvertedUS3L(model, weights, method if heads else None, config,
                         measured, remarks, sorted(unused), left_out)


def set_stem(arguments: dict, stem: Optional[str], arch: str,
             method: Optional[str]) -> List[str]:
    """Choose the class of a MobileNetV2 by its strides.

    Args:
        arguments (dict): The config of the backbone; its ``type`` is changed.
        stem (str, optional): 'cifar' or 'imagenet', if the user says it.
        arch (str): The architecture that the file names.
        method (str, optional): The base method, if it is known.

    Returns:
        list[str]: The reason for the choice; empty for other networks.
    """
    if arguments['type'] != MOBILENET:
        if stem is not None:
            raise ValueError(
                'stem chooses the strides of a MobileNetV2, and this file is '
                f'of a {arguments["type"]}. Leave it out.')
        return []
    if stem not in (None, *STEMS):
        raise ValueError(f'stem is one of {STEMS}, got {stem!r}.')
    reason = 'as given'
    if stem is None and 'cifar' in arch.lower():
        stem, reason = 'cifar', f'after the architecture {arch!r} in the file'
    elif stem is None and method in ('byol', 'simsiam-momentum'):
        stem, reason = 'imagenet', f'after the base method {method}'
    elif stem is None:
        stem, reason = 'cifar', 'for which the authors have a recipe'
    arguments['type'] += '_CIFAR' if stem == 'cifar' else ''
    return [
        'The weights do not show the strides of the stem: they are those for '
        f'{stem}, {reason}. The others are --stem {STEMS[stem == "cifar"]}.']


def find_projections(parts: Parts,
                     backbone: nn.Module) -> Tuple[State, List[str]]:
    """Find the projections of feature distillation by their shapes.

    Returns:
        tuple: Their weights by the keys in the file, and the modules of the
        backbone whose outputs they read; both are empty if there are none.
    """
    if 'ResNet' not in type(backbone).__name__:
        return {}, []
    stages = [getattr(backbone, f'layer{stage}') for stage in (2, 3, 4)]
    modules = [
        f'layer{stage}.{len(blocks) - 1}.bn2'
        for stage, blocks in enumerate(stages, 2)]
    known = dict(backbone.named_parameters())
    candidates = {
        f'{parts.names[0]}.{key}': value
        for key, value in parts.student.items() if key not in known}
    for name, own in parts.others.items():
        candidates.update({f'{name}.{key}': v for key, v in own.items()})
    found = {
        key: value for key, value in candidates.items() if value.ndim == 4
        and value.shape[0] == value.shape[1] == value.numel()**0.5}
    channels = [blocks[-1].bn2.num_features for blocks in stages]
    if [len(value) for value in found.values()] != channels:
        return {}, []
    return found, modules


def find_config(method: str, arguments: dict) -> Optional[str]:
    """The config file for a base method and backbone, if there is one."""
    size = arguments.get('depth', arguments.get('arch'))
    if isinstance(size, dict) or 'base_channels' in arguments:
        return None
    return CONFIGS.get(
        (method, arguments['type'].removeprefix('us3l_mm.'), size))


@dataclass(frozen=True)
class Heads:
    """The projector and predictors of a file, and its base method.

    Attributes:
        method (str): The base method, a key of ``METHODS``.
        neck (MLP): The projector.
        predictors (list[MLP]): The predictors; that of the base pass first.
        remarks (list[str]): The assumptions of the conversion.
    """

    method: str
    neck: MLP
    predictors: List[MLP]
    remarks: List[str]

    @classmethod
    def of(cls, parts: Parts, method: Optional[str]) -> 'Heads':
        """Find the heads of a file, of the given base method or of any."""
        where = f'{parts.names[0]}.{parts.names[2]}'
        if not parts.projectors[0]:
            raise ValueError(f'The file has no projector ({where}), so it '
                             f'does not hold the whole algorithm. {ALONE}')
        neck = MLP.of(parts.projectors[0], where)
        predictors = [
            MLP.of(own, name) for name, own in sorted(
                parts.others.items(), key=lambda item:
                (item[0] != 'predictor', item[0]))
            if '0.weight' in own and own['0.weight'].ndim == 2]
        remarks = [
            f'{name} is left out, as the norm after it subtracts it.'
            for mlp in (neck, *predictors) for name in mlp.frozen]
        methods = find_methods(parts, predictors)
        if method not in (None, *methods):
            raise ValueError(
                'The predictors in the file are those of '
                f'{" or ".join(methods)}, got the base method {method!r}.')
        if method is None and len(methods) > 1:
            remarks.append(
                f'Files of {" and ".join(methods)} have the same keys. This '
                f'one is assumed to be of {methods[0]}; if it is not, pass '
                f'--method {methods[1]}.')
        dims = neck.arguments['out_channels']
        for mlp in predictors:
            sides = [
                mlp.arguments[f'{side}_channels'] for side in ('in', 'out')]
            if sides != [dims, dims]:
                raise ValueError(
                    f'{mlp.name} maps {sides[0]} features to {sides[1]}, but '
                    f'the embeddings of {where} have {dims}.')
        return cls(method or methods[0], neck, predictors, remarks)

    @property
    def base(self) -> Optional[MLP]:
        """The predictor of the base pass."""
        return None if self.method == 'simclr-momentum' else self.predictors[0]

    @property
    def distil(self) -> Optional[MLP]:
        """The predictor of the distillation passes, if it is another one."""
        return None if self.shares else self.predictors[-1]

    @property
    def shares(self) -> bool:
        """Whether all passes share one predictor."""
        return len(self.predictors) == 1 and self.method != 'simclr-momentum'

    def model(self, backbone: dict, modules: List[str]) -> dict:
        """The config of the algorithm.

        Args:
            backbone (dict): The config of the backbone.
            modules (list[str]): The modules for feature distillation.
        """
        _, base, distil, others = METHODS[self.method]

        def head(predictor: Optional[MLP], rest: dict) -> dict:
            part = {} if predictor is None else dict(predictor=dict(
                type='us3l_mm.Predictor', **predictor.arguments))
            return dict(type='us3l_mm.PredictionHead', **part, **rest)

        if modules:
            others = dict(
                others, feature_distiller=dict(modules=modules,
                                               loss_weight=1.0))
        return dict(
            type='us3l_mm.US3LAlgorithm', backbone=backbone, neck=dict(
                type='us3l_mm.SlimmableProjector', **self.neck.arguments),
            head=head(self.base, base), distill_head=head(self.distil, distil),
            share_predictor=self.shares, **others)


def find_methods(parts: Parts, predictors: List[MLP]) -> Tuple[str, ...]:
    """The base methods whose files have these parts.

    Raises:
        ValueError: If there is none.
    """
    names = [mlp.name for mlp in predictors]
    pair = len(names) == 2 and names[0] == 'predictor'
    teacher, student = parts.names[1], parts.names[0]
    ends = [mlp.arguments.get('with_last_bn_affine') for mlp in predictors]
    if parts.is_vit and parts.teacher and pair and ends == [False, False]:
        return ('mocov3', )
    if not parts.is_vit and parts.teacher and pair:
        return ('byol', 'simsiam-momentum')
    if not parts.is_vit and not parts.teacher and pair:
        return ('simsiam', )
    if not parts.is_vit and len(names) == 1:
        return (('simclr-momentum', 'simsiam-momentum') if parts.teacher else
                ('simsiam', ))
    known = (f'{teacher}, predictor and a second one, each ending in a norm '
             'without affine parameters (MoCo v3)' if parts.is_vit else
             'one predictor (SimCLR with a momentum teacher; SimSiam), or '
             'predictor and a second one (BYOL; SimSiam)')
    raise ValueError(
        f'The base method of the file cannot be recognised: beside {student} '
        f'it has {teacher if parts.teacher else f"no {teacher}"} and the '
        f'predictors {names}. Known are files with {known}. {ALONE}')


def assemble(model: dict, backbone: nn.Module, parts: Parts, heads: Heads,
             projections: State) -> nn.Module:
    """Build the algorithm ``model`` and load all its weights."""
    algorithm = MODELS.build(model)
    _, teacher, projector = parts.names
    algorithm.backbone.load_state_dict(backbone.state_dict())
    _load(algorithm.neck, heads.neck.weights, heads.neck.name)
    if algorithm.teacher is not None:
        _load(algorithm.teacher.backbone, parts.teacher,
              f'The momentum encoder ({teacher})')
        name = f'{teacher}.{projector}'
        _load(algorithm.teacher.neck,
              MLP.of(parts.projectors[1], name).weights, name)
    for head, mlp in ((algorithm.head, heads.base), (algorithm.distill_head,
                                                     heads.distil)):
        if mlp is not None:
            _load(head.predictor, mlp.weights, mlp.name)
    for i, value in enumerate(projections.values()):
        algorithm.feature_distiller.projections[i].weight.data.copy_(value)
    return algorithm


def _load(module: nn.Module, weights: State, source: str) -> None:
    """Load all parameters of ``module``, but no statistics."""
    own, children = dict(module.named_parameters()), dict(
        module.named_children())
    given = {
        key: value for key, value in weights.items()
        if not key.endswith(STATISTICS)}
    unknown = sorted(key for key in given
                     if key not in own and key.split('.')[0] in children)
    if unknown:
        raise ValueError(
            f'{source} is of another network: a {type(module).__name__} has '
            f'no {", ".join(unknown[:3])}.')
    check_fit(own, given,
              type(module).__name__,
              'The file is of another network, or incomplete.', source=source)
    module.load_state_dict({key: given[key] for key in own}, strict=False)
