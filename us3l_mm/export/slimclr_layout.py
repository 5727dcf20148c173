# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What stands where in the files of the authors' SlimCLR code.

A file of pre-training holds a ResNet with its projector, and as its method has
them a momentum encoder, a predictor and a queue; one of linear evaluation
holds a ResNet with its classifiers. Keys and shapes tell all of it.
"""
import re
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from typing import List, Optional, Tuple

from mmpretrain.models import ResNet
from mmpretrain.models.backbones.resnet import Bottleneck

from us3l_mm.models.backbones import SlimmableResNet_CIFAR
from us3l_mm.models.layers import Subnet
from .families.family import non_default
from .foreign import State

DIVISOR = 8
STEM = 'features.0.conv1.weight'
NETWORK = ('conv1', 'bn1', 'features', 'fc')
OTHERS = r'predictor\.|queue(_ptr)?$'
# The method, by what a file has: momentum encoder, predictor, queue, and norms
# in the projector.
METHOD_OF = {
    (True, False, True, False): 'mocov2',
    (True, True, False, True): 'mocov3',
    (False, False, False, True): 'simclr'}
ALONE = ('To convert the backbone alone, pass --backbone-only '
         '(backbone_only=True).')


@dataclass(frozen=True)
class Parts:
    """The tensors of a file, by the part of the algorithm they belong to.

    Attributes:
        names (tuple[str, str]): What precedes the keys of the student and of
            the momentum encoder: 'encoder_q.', 'base_encoder.' or '', for
            instance; the second is '' where there is none.
        student, teacher (dict[str, Tensor]): The two, with projector or
            classifiers, under the names of the file.
        others (dict[str, Tensor]): All else, under the names of the file.
    """

    names: Tuple[str, str]
    student: State
    teacher: State
    others: State

    @classmethod
    def of(cls, weights: State) -> 'Parts':
        """Find the parts in the ``state_dict`` of a file.

        Raises:
            ValueError: If there is no network of theirs, or more than two.
        """
        wrapper = 'module.' * all(key.startswith('module.') for key in weights)
        bare = {
            key.removeprefix(wrapper): value for key, value in weights.items()}
        prefixes = [key[:-len(STEM)] for key in bare if key.endswith(STEM)]
        teachers = [
            name for name in prefixes if re.match('encoder_k|momentum', name)]
        students = [name for name in prefixes if name not in teachers]
        if len(students) != 1 or len(teachers) > 1:
            raise ValueError(
                'A file of SlimCLR has one student, such as encoder_q or '
                f'base_encoder, with {STEM}, and at most one momentum encoder;'
                f' this one has {students} and {teachers}, and begins with '
                f'{sorted(weights)[:3]}. Files of the US3L code are converted '
                'by us3l_to_ours.py, ordinary ResNets by plain_to_ours.py.')
        names = students[0], teachers[0] if teachers else ''
        student = {
            key: value for key, value in below(bare, names[0]).items()
            if key.split('.')[0] in NETWORK}
        teacher = below(bare, names[1]) if teachers else {}
        taken = {
            f'{name}{key}' for name, own in zip(names, (student, teacher))
            for key in own}
        return cls(names, student, teacher, {
            key: value for key, value in bare.items() if key not in taken})

    def left_out(self, method: Optional[str]) -> List[str]:
        """The parts that the conversion of a method does not use."""
        uses_rest = method not in (None, 'probe')
        parts = {
            key.split('.')[0] for key in self.others
            if not uses_rest or not re.match(OTHERS, key)}
        if method is None and any(key[:3] == 'fc.' for key in self.student):
            parts.add(f'{self.names[0]}fc')
        teacher = self.names[1][:-1]
        if self.teacher and not uses_rest:
            parts.add(teacher)
        elif any('.bn.1.' in key for key in self.teacher):
            parts.add(f'the narrower norms of {teacher}')
        return sorted(parts)

    def subnets(self) -> List[Subnet]:
        """The widths, by the channels of the first norms.

        Raises:
            ValueError: If there are no such norms, or the first is not of all
            channels.
        """
        channels = {
            int(found[1]): len(value) for key, value in self.student.items()
            if (found := re.fullmatch(r'bn1\.bn\.(\d+)\.running_mean', key))}
        stem = self.student.get('conv1.weight')
        sizes = [channels[i] for i in sorted(channels)]
        if (stem is None or not sizes or sizes[0] != len(stem)
                or sizes != sorted(set(sizes), reverse=True)):
            raise ValueError(
                'The norms of the widths (bn1.bn.0 and so on, from wide to '
                f'narrow) have {sizes} channels, and the first convolution '
                f'has {None if stem is None else len(stem)}: this is no file '
                'of SlimCLR.')
        return [Subnet(size / sizes[0]) for size in sizes]

    def method(self, subnets: List[Subnet]) -> str:
        """The method that the parts make up, or 'probe' for classifiers.

        Raises:
            ValueError: If none does.
        """
        norms = any('.bn.' in key for key in self.student
                    if key.startswith('fc.'))
        predictor = 'predictor.0.weight' in self.others
        found = (bool(self.teacher), predictor, 'queue' in self.others, norms)
        if found in METHOD_OF:
            return METHOD_OF[found]
        if found == (False, False, False, False) and self.classifiers(subnets):
            return 'probe'
        shown = {
            key: tuple(value.shape) for key, value in self.student.items()
            if key.startswith('fc.')}
        raise ValueError(
            'The method of the file cannot be recognised. It has ' +
            ', '.join(f'{"a" if there else "no"} {what}'
                      for what, there in zip(
                          ('momentum encoder', 'predictor', 'queue',
                           'norm in the projector'), found)) +
            f', and projector or classifiers with the shapes {shown}. Known '
            'are MoCo v2, MoCo v3, SimCLR, and classifiers, one of each width '
            f'or one of all. {ALONE}')

    def classifiers(self, subnets: List[Subnet]) -> List[str]:
        """Where the linear classifiers of the widths are, below ``fc.``.

        One for each width, or a single one that all share.
        """
        weights = {
            key.removesuffix('weight'): value
            for key, value in self.student.items()
            if key.startswith('fc.') and key.endswith('weight')}
        features = max((len(value) for key, value in self.student.items()
                        if key.endswith(('conv2.weight', 'conv3.weight'))),
                       default=0)
        wanted = [(features * subnet.width, ) for subnet in subnets]
        sizes = [tuple(value.shape[1:]) for value in weights.values()]
        return [*weights] if sizes in (wanted, wanted[:1]) else []


def below(weights: State, prefix: str) -> State:
    """The tensors whose keys have ``prefix``, without it."""
    return {
        key[len(prefix):]: value for key, value in weights.items()
        if key.startswith(prefix)}


def backbone_arguments(weights: State, subnets: List[Subnet]) -> dict:
    """The arguments of the slimmable ResNet that ``weights`` are of."""
    blocks = len({
        key.split('.')[1] for key in weights if key.startswith('features.')})
    bottleneck = 'features.0.conv3.weight' in weights
    cifar = weights['conv1.weight'].shape[2] == 3
    depths = [
        depth for depth, (block, stages) in (
            SlimmableResNet_CIFAR if cifar else ResNet).arch_settings.items()
        if sum(stages) == blocks and (block is Bottleneck) == bottleneck]
    if not depths:
        raise ValueError(
            f'No ResNet has {blocks} blocks with{"" if bottleneck else "out"} '
            'bottleneck, so the file is of another network, or incomplete.')
    stem, base = (len(weights[key]) for key in ('conv1.weight', STEM))
    return dict(
        type='us3l_mm.SlimmableResNet' + '_CIFAR' * cifar, depth=depths[0],
        norm_cfg=dict(type='SwitchableBN', subnets=widths_of(subnets)),
        **non_default(dict(stem_channels=stem, base_channels=base), ResNet),
        **rounding(subnets, stem, base))


def rounding(subnets: List[Subnet], *channels: int) -> dict:
    """The divisor of the channels of all widths, if it is not the usual."""
    divisor = gcd(
        DIVISOR,
        *(round(c * subnet.width) for subnet in subnets for c in channels))
    return {} if divisor == DIVISOR else dict(divisor=divisor)


def widths_of(subnets: List[Subnet]) -> List[float]:
    """Their widths, as a config has them."""
    return [subnet.width for subnet in subnets]


def backbone_weights(weights: State, subnets: List[Subnet]) -> State:
    """The weights of a ResNet under our names."""
    depth = backbone_arguments(weights, subnets)['depth']
    _, stages = SlimmableResNet_CIFAR.arch_settings[depth]
    places = [(stage, block) for stage, blocks in enumerate(stages, 1)
              for block in range(blocks)]
    renamed = {}
    for key, value in own_norms(weights, subnets).items():
        found = re.fullmatch(r'features\.(\d+)\.(.+)', key)
        if found:
            stage, block = places[int(found[1])]
            rest = found[2].replace('shortcut.', 'downsample.')
            renamed[f'layer{stage}.{block}.{rest}'] = value
        elif not key.startswith('fc.'):
            renamed[key] = value
    return renamed


def own_norms(weights: State, subnets: List[Subnet]) -> State:
    """Norms of the widths under our keys: ``bn.1.weight`` is ``w0750000...``.

    Those of the full width have the keys of a plain norm.
    """
    renamed = {}
    for key, value in weights.items():
        found = re.fullmatch(r'(.*\.)bn\.(\d+)\.(\w+)', key)
        if found and int(found[2]) < len(subnets):
            owner = subnets[int(found[2])].key
            key = f'{found[1]}{owner}.{found[3]}' if owner else (found[1] +
                                                                 found[3])
        renamed[key] = value
    return renamed


def read_mlp(weights: State, name: str,
             subnets: List[Subnet]) -> Tuple[dict, State]:
    """Arguments of a :class:`SlimmableProjector`, and its weights.

    Args:
        weights (dict): With keys such as '0.weight' for the first linear
            layer and '1.bn.0.weight' for the norm behind it.
        name (str): What the file calls it.
        subnets (list[Subnet]): The widths.

    Raises:
        ValueError: If these are other layers, or some are missing.
    """
    shapes = {
        int(found[1]): tuple(value.shape) for key, value in weights.items()
        if (found := re.fullmatch(r'(\d+)\.weight', key)) and value.ndim == 2}
    at = sorted(shapes)
    places = {str(index): f'fc{i}' for i, index in enumerate(at)}
    places.update({str(index + 1): f'bn{i}' for i, index in enumerate(at)})
    own = own_norms(weights, subnets)
    groups = {key.split('.')[0] for key in own}
    norms = [str(index + 1) in groups for index in at]
    sizes = [shapes[index] for index in at]
    if (len(at) < 2 or not groups <= places.keys() or len({*norms[:-1]}) > 1
            or any(out != into for (out, _), (_, into) in pairwise(sizes))):
        raise ValueError(
            f'{name} is not made of linear layers with a ReLU, or a batch '
            'norm and a ReLU, between them, or the file is incomplete. It has '
            f'{ {key: tuple(value.shape) for key, value in weights.items()} }.'
            f' {ALONE}')
    biases = [f'{index}.bias' in own for index in at]
    arguments = dict(
        in_channels=sizes[0][1], hid_channels=sizes[0][0],
        out_channels=sizes[-1][0], num_layers=len(at), slice_hidden=True,
        with_bias=biases[:-1], with_last_bias=biases[-1],
        with_last_bn=norms[-1], norm_cfg=dict(
            type='us3l_mm.SwitchableBatchNorm1d', subnets=widths_of(subnets))
        if norms[0] else None)
    if norms[-1]:
        arguments['with_last_bn_affine'] = f'{at[-1] + 1}.weight' in own
    renamed = {}
    for key, value in own.items():
        index, _, leaf = key.partition('.')
        renamed[f'{places[index]}.{leaf}'] = value
    return arguments, renamed
