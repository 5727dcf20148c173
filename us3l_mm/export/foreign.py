# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""ResNets of other code bases as checkpoints of ours.

Nearly all libraries use torchvision's keys. So a conversion finds these keys
in the file, derives the arguments of the ResNet from the shapes, and assigns
the batch-norm statistics to a width.
"""
import re
from dataclasses import dataclass
from typing import Dict, List, Optional

import torch
from mmpretrain.models import ResNet
from mmpretrain.models.backbones.resnet import Bottleneck
from torch import Tensor, nn

from us3l_mm.models.layers import FULL, SlimmableBatchNorm, Subnet
from us3l_mm.registry import MODELS
from us3l_mm.version import __version__
from .families import family_of
from .families.family import non_default

State = Dict[str, Tensor]
STATISTICS = ('running_mean', 'running_var', 'num_batches_tracked')


@dataclass(frozen=True)
class Converted:
    """A slimmable network with the weights of another code base.

    Attributes:
        network (nn.Module): The network, with the statistics of the file.
        arguments (dict): Its config, with the ``type``.
        left_out (list[str]): The parts of the file that it does not have.
    """

    network: nn.Module
    arguments: dict
    left_out: List[str]

    def checkpoint(self, source: dict) -> dict:
        """The content of a checkpoint of MMEngine.

        Args:
            source (dict): Where the weights are from.
        """
        return stored(
            dict(backbone=self.arguments), {
                f'backbone.{key}': value
                for key, value in self.network.state_dict().items()}, source)


def from_plain(weights: State, prefix: Optional[str] = None,
               style: str = 'pytorch') -> Converted:
    """Convert an ordinary ResNet of MMPretrain, torchvision or the like.

    At full width, the result computes the same as that network, which is
    checked. The statistics of the file become those of the full width.

    Args:
        weights (dict): The state dict of the network, or of a model with it.
        prefix (str, optional): The prefix of its keys, such as 'backbone.'.
            Defaults to the one that is found.
        style (str): 'pytorch', or 'caffe' if the first convolution of a
            bottleneck has the stride, which weights do not show. Defaults to
            'pytorch'.

    Raises:
        ValueError: If there is no ResNet, or if there are several.
    """
    prefix = find_prefix(weights, prefix)
    own = {
        key[len(prefix):]: value for key, value in weights.items()
        if key.startswith(prefix)}
    arguments = infer_arguments(own, style)
    network = MODELS.build(dict(arguments)).eval()
    parts = dict(network.named_children())
    network.load_state_dict(
        {
            key: value for key, value in own.items()
            if key.split('.')[0] in parts and not key.endswith(STATISTICS)},
        strict=False)
    # A part is named by the first word behind the prefix, or behind 'module.'.
    part = rf'((?:{re.escape(prefix)}|module\.|)[^.]*).*'
    named = {re.sub(part, r'\1', key, count=1) for key in weights}
    converted = Converted(network, arguments,
                          sorted(named - {prefix + name for name in parts}))
    if 'bn1.running_mean' in own or 'stem.0.bn.running_mean' in own:
        take_statistics(network, own, FULL)
        _compare(converted, own)
    return converted


def stored(model: dict, weights: State, source: dict) -> dict:
    """The content of a checkpoint, with a config as MMEngine stores it.

    Args:
        model (dict): The config of the model.
        weights (dict[str, Tensor]): Its state dict.
        source (dict): Where the weights are from.
    """
    return dict(
        state_dict=weights, meta=dict(
            cfg=f"default_scope = 'mmpretrain'\nmodel = {model!r}\n",
            us3l_mm_version=__version__, source=source))


def find_prefix(weights: State, wanted: Optional[str] = None) -> str:
    """The prefix of the keys of the ResNet in ``weights``."""
    end = 'layer1.0.conv1.weight'
    found = sorted({key[:-len(end)] for key in weights if key.endswith(end)})
    if wanted is not None:
        found = [prefix for prefix in found if prefix == wanted]
    if len(found) == 1:
        return found[0]
    where = '' if wanted is None else f' under {wanted}'
    raise ValueError(
        f'There is no ResNet{where} in the file. Its keys begin with '
        f'{sorted(weights)[:3]}.' if not found else
        f'The file has several ResNets, with the prefixes {found}. Choose one '
        'by --prefix.')


def infer_arguments(weights: State, style: str = 'pytorch') -> dict:
    """The config of the slimmable ResNet that has these weights."""
    stages: List[int] = []
    while f'layer{len(stages) + 1}.0.conv1.weight' in weights:
        stem = f'layer{len(stages) + 1}.'
        stages.append(1 + max(
            int(key[len(stem):].split('.')[0])
            for key in weights if key.startswith(stem)))
    is_bottleneck = 'layer1.0.conv3.weight' in weights
    depths = [
        depth for depth, (block, blocks) in ResNet.arch_settings.items()
        if blocks == tuple(stages) and (block is Bottleneck) == is_bottleneck]
    if not depths:
        raise ValueError(
            f'No ResNet has {stages} blocks '
            f'{"with" if is_bottleneck else "without"} bottlenecks. The '
            f'depths are {sorted(ResNet.arch_settings)}.')
    deep_stem = 'stem.0.conv.weight' in weights
    stem = weights['stem.2.conv.weight' if deep_stem else 'conv1.weight']
    first = weights['stem.0.conv.weight'] if deep_stem else stem
    is_cifar = not deep_stem and stem.shape[2] == 3
    return dict(
        type='us3l_mm.SlimmableResNet' + ('_CIFAR' if is_cifar else ''),
        depth=depths[0],
        **non_default(
            dict(stem_channels=stem.shape[0], deep_stem=deep_stem, style=style,
                 base_channels=weights['layer1.0.conv1.weight'].shape[0],
                 avg_down=weights['layer2.0.downsample.1.weight'].ndim == 4,
                 in_channels=first.shape[1]), ResNet))


def take_statistics(backbone: nn.Module, weights: State,
                    subnet: Subnet) -> None:
    """Give ``backbone`` the running statistics of a file for one width.

    Args:
        backbone (nn.Module): A network with the weights of the file.
        weights (dict[str, Tensor]): The tensors of the file by our names. The
            leading entries of its statistics are those of the width.
        subnet (Subnet): The width.

    Raises:
        ValueError: If the weights differ, or if there are no statistics.
    """
    norms = {
        name: norm for name, norm in backbone.named_modules()
        if isinstance(norm, SlimmableBatchNorm)}
    if not norms:
        raise ValueError(f'A {type(backbone).__name__} has no batch norms, so '
                         'there are no statistics to take. Leave out the file '
                         f'for width {subnet.width:g}.')
    for key, value in backbone.named_parameters():
        if key not in weights or not torch.equal(weights[key].to(value),
                                                 value):
            raise ValueError(
                f'The file of statistics for width {subnet.width:g} is of '
                f'another network: its {key} differs.')
    for name, norm in norms.items():
        if f'{name}.running_mean' not in weights:
            raise ValueError(
                f'The file given for width {subnet.width:g} has no running '
                f'statistics of {name}.')
        c = norm.active(subnet.width)
        norm.set_statistics(
            subnet, *(weights[f'{name}.{leaf}'][:c]
                      for leaf in STATISTICS[:2]))


@torch.no_grad()
def _compare(converted: Converted, own: State) -> None:
    """Raise unless the full width computes the same as the plain network."""
    network = converted.network
    plain = family_of(network).stock_class(network)(**{
        key: value for key, value in converted.arguments.items()
        if key != 'type'})
    plain.load_state_dict(own, strict=False)
    plain.eval()
    images = torch.randn(2, converted.arguments.get('in_channels', 3), 64, 64,
                         generator=torch.Generator().manual_seed(0))
    if not torch.equal(plain(images)[-1], network(images)[-1]):
        raise ValueError('The converted network does not compute the same as '
                         'the plain one. Nothing was written.')
