# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The layout of the files of the authors' US3L code.

A file holds the student and the momentum encoder, each with a projector, and
one or two predictors. Keys and shapes determine the network.
"""
import re
from dataclasses import dataclass
from typing import Collection, Dict, List, Optional, Tuple

from mmpretrain.models import MobileNetV2

from us3l_mm.models.backbones.slimmable_vit import ARCHS
from .foreign import STATISTICS, State, infer_arguments

# The number of heads by the number of features; weights do not show it.
HEADS = {arch['embed_dims']: arch['num_heads'] for arch in ARCHS.values()}
MOBILENET_BLOCKS = [
    f'layer{stage}.{block}'
    for stage, (_, _, blocks, _) in enumerate(MobileNetV2.arch_settings, 1)
    for block in range(blocks)]
VIT_NAMES = (
    (r'^patch_embed\.proj\.', 'patch_embed.projection.'),
    (r'^blocks\.(\d+)\.norm([12])\.', r'layers.\1.ln\2.'),
    (r'^blocks\.(\d+)\.attn\.', r'layers.\1.attn.'),
    (r'^blocks\.(\d+)\.mlp\.fc1\.', r'layers.\1.ffn.layers.0.0.'),
    (r'^blocks\.(\d+)\.mlp\.fc2\.', r'layers.\1.ffn.layers.1.'),
    (r'^norm\.', 'ln1.'),
)


@dataclass(frozen=True)
class Parts:
    """The tensors of a file by the parts of the algorithm.

    Attributes:
        wrapper (str): The prefix of all keys: 'module.' or ''.
        names (tuple[str, str, str]): The names of the student, the momentum
            encoder and their projectors in the file.
        student, teacher (dict[str, Tensor]): The tensors of the two backbones
            by our names; empty for the teacher if there is none.
        projectors (tuple[dict, dict]): The tensors of the two projectors by
            the names in the file.
        others (dict[str, dict]): All other tensors by the first word of their
            keys.
    """

    wrapper: str
    names: Tuple[str, str, str]
    student: State
    teacher: State
    projectors: Tuple[State, State]
    others: Dict[str, State]

    @classmethod
    def of(cls, weights: State) -> 'Parts':
        """Find the parts in the ``state_dict`` of a file.

        Raises:
            ValueError: If there is no student.
        """
        wrapper = 'module.' * all(key.startswith('module.') for key in weights)
        groups: Dict[str, State] = {}
        for key, value in weights.items():
            name, _, rest = key[len(wrapper):].partition('.')
            groups.setdefault(name, {})[rest] = value
        names = _find_names(groups)
        backbones: List[State] = []
        projectors: List[State] = []
        for name in names[:2]:
            group, stem = groups.pop(name, {}), f'{names[2]}.'
            projectors.append({
                key[len(stem):]: value for key, value in group.items()
                if key.startswith(stem)})
            backbones.append({
                rename(key): value for key, value in group.items()
                if not key.startswith(stem)})
        return cls(wrapper, names, backbones[0], backbones[1],
                   (projectors[0], projectors[1]), groups)

    @property
    def is_vit(self) -> bool:
        """Whether the network is a vision transformer."""
        return self.names[2] == 'head'

    def left_out(self, backbone: Collection[str],
                 used: Optional[Collection[str]] = None) -> List[str]:
        """The parts that a conversion does not use.

        Args:
            backbone (collection[str]): The parts of our backbone.
            used (collection[str], optional): The other parts that are used, or
                keys of their tensors. Defaults to None, where only the
                student's backbone is used.
        """
        student, teacher, projector = self.names
        parts = set(self.others)
        groups = [(student, self.student), (teacher, self.teacher)]
        if used is None:
            parts |= {f'{student}.{projector}'
                      } if self.projectors[0] else set()
            parts |= {teacher} if self.teacher else set()
            groups.pop()
        for name, own in groups:
            first = {key.split('.')[0] for key in own}
            parts |= {f'{name}.{part}' for part in first - {*backbone}}
        return sorted(self.wrapper + part for part in parts
                      if not any(f'{key}.'.startswith(f'{part}.')
                                 for key in used or ()))


def _find_names(groups: Dict[str, State]) -> Tuple[str, str, str]:
    """The names of student, momentum encoder and projector in a file."""
    if 'base_encoder' in groups:
        return 'base_encoder', 'momentum_encoder', 'head'
    students = ['encoder_q'] if 'encoder_q' in groups else [
        name for name, own in groups.items()
        if 'fc.0.weight' in own and name != 'encoder_k']
    if len(students) != 1:
        raise ValueError(
            'There is no student (encoder_q or base_encoder) in the file, '
            f'which has the parts {sorted(groups)[:5]}. Give a pre-training '
            "file of the authors' US3L code; an ordinary ResNet is converted "
            'by plain_to_ours.py.')
    return students[0], 'encoder_k', 'fc'


def rename(key: str) -> str:
    """Our name of a tensor of a backbone; unknown names are not changed."""
    found = re.match(r'features\.(\d+)\.(body\.)?(\d+)\.(\w+)$', key)
    if found:
        block, layer = int(found[1]), int(found[3])
        name = {0: 'conv1', 18: 'conv2'}.get(block)
        if found[2] and 0 < block <= len(MOBILENET_BLOCKS):
            name = f'{MOBILENET_BLOCKS[block - 1]}.conv.{layer // 3}'
        if name and layer % 3 < 2:
            return f'{name}.{("conv", "bn")[layer % 3]}.{found[4]}'
    for theirs, ours in VIT_NAMES:
        if re.search(theirs, key):
            return re.sub(theirs, ours, key)
    return key


def backbone_arguments(weights: State) -> dict:
    """The config of the slimmable backbone that has these weights.

    A MobileNetV2 gets the strides for ImageNet.

    Raises:
        ValueError: If there is no such backbone.
    """
    try:
        if 'layer1.0.conv1.weight' in weights:
            return infer_arguments(weights)
        if 'layer1.0.conv.0.conv.weight' in weights:
            return dict(type='us3l_mm.SlimmableMobileNetV2')
        if 'patch_embed.projection.weight' in weights:
            return _vit_arguments(weights)
    except KeyError as error:
        raise ValueError(
            f'The file is incomplete: its student lacks {error}.') from None
    raise ValueError(
        'The student in the file is no ResNet, MobileNetV2 or vision '
        f'transformer. Its keys begin with {sorted(weights)[:3]}.')


def _vit_arguments(weights: State) -> dict:
    dims, _, patch, _ = weights['patch_embed.projection.weight'].shape
    if dims not in HEADS:
        raise ValueError(
            f'The transformer in the file has {dims} features, and weights do '
            f'not show its number of heads. Known are {sorted(HEADS)} '
            f'features, with {[HEADS[d] for d in sorted(HEADS)]} heads.')
    layers = {key.split('.')[1] for key in weights if key[:7] == 'layers.'}
    hidden = weights['layers.0.ffn.layers.0.0.weight'].shape[0]
    arch = dict(embed_dims=dims, num_layers=len(layers), num_heads=HEADS[dims],
                feedforward_channels=hidden)
    named = [name for name, known in ARCHS.items() if known == arch]
    side = round((weights['pos_embed'].shape[1] - 1)**0.5)
    return dict(type='us3l_mm.SlimmableViT', arch=named[0] if named else arch,
                img_size=side * patch, patch_size=patch, positions='sincos',
                frozen_patch_embed=True, init_style='mocov3')


@dataclass(frozen=True)
class MLP:
    """A projector or predictor.

    Attributes:
        name (str): Its name in the file.
        arguments (dict): The arguments of :class:`SlimmableProjector`.
        weights (dict[str, Tensor]): Its tensors by the names in that class.
        frozen (list[str]): The bias before the last norm, if there is one. The
            norm subtracts it, SimSiam does not train it, and it is left out.
    """

    name: str
    arguments: dict
    weights: State
    frozen: List[str]

    @classmethod
    def of(cls, weights: State, name: str) -> 'MLP':
        """Read linear layers with a batch norm and a ReLU between.

        Args:
            weights (dict): With keys such as '0.weight' for the first linear
                layer, '1.weight' for its norm, '3.weight' for the second.
            name (str): Its name in the file.

        Raises:
            ValueError: If there are other layers, or some are missing.
        """
        layers: Dict[str, State] = {}
        for key, value in weights.items():
            index, _, leaf = key.partition('.')
            layers.setdefault(index, {})[leaf] = value
        count = sum(own['weight'].ndim == 2 for own in layers.values()
                    if 'weight' in own)
        linear = [layers.pop(str(3 * i), {}) for i in range(count)]
        norms = [layers.pop(str(3 * i + 1), {}) for i in range(count)]
        shapes = [
            tuple(own['weight'].shape) for own in linear if 'weight' in own]
        if (count < 2 or layers or len(shapes) < count or not all(norms[:-1])
                or len({
                    n for pair in zip(shapes[1:], shapes)
                    for n in (pair[0][1], pair[1][0])}) > 1):
            raise ValueError(
                f'{name} is not made of linear layers with a batch norm and a '
                'ReLU between, hidden ones of one size, or the file is '
                'incomplete. It has '
                f'{ {key: tuple(v.shape) for key, v in weights.items()} }.')
        frozen = []
        if norms[-1] and linear[-1].pop('bias', None) is not None:
            frozen.append(f'{name}.{3 * count - 3}.bias')
        biases = ['bias' in own for own in linear]
        arguments = dict(
            in_channels=shapes[0][1], hid_channels=shapes[0][0],
            out_channels=shapes[-1][0], num_layers=count, with_bias=(
                biases[0] if len(set(biases[:-1])) == 1 else biases[:-1]),
            with_last_bias=biases[-1], with_last_bn=bool(norms[-1]))
        if norms[-1]:
            arguments['with_last_bn_affine'] = 'weight' in norms[-1]
        return cls(
            name, arguments, {
                f'{kind}{i}.{leaf}': value
                for kind, group in (('fc', linear), ('bn', norms))
                for i, own in enumerate(group)
                for leaf, value in own.items() if leaf not in STATISTICS},
            frozen)
