# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""ResNets of other code bases as checkpoints of ours.

The keys of a ResNet are the same nearly everywhere (torchvision's), so what
there is to do is to find them, to see which ResNet they make up, and to say
what the statistics in the file belong to.
"""
from dataclasses import dataclass
from typing import Dict, List, Optional

import torch
from mmpretrain.models import ResNet
from mmpretrain.models.backbones.resnet import Bottleneck
from torch import Tensor, nn

from us3l_mm.models.backbones import SlimmableResNet, SlimmableResNet_CIFAR
from us3l_mm.models.layers import SlimmableBatchNorm, Subnet
from us3l_mm.version import __version__
from .families import family_of

State = Dict[str, Tensor]
US3L_PREFIX = 'module.encoder_q.'


@dataclass(frozen=True)
class Converted:
    """A slimmable network from elsewhere.

    Attributes:
        network (nn.Module): With the weights, and statistics if there are.
        arguments (dict): That it was built with, its ``type`` among them.
        left_out (list[str]): What of the file has no place in it.
    """

    network: nn.Module
    arguments: dict
    left_out: List[str]

    def checkpoint(self, source: dict) -> dict:
        """What to write: weights, and a config as MMEngine would store it.

        Args:
            source (dict): What to say about where it comes from.
        """
        backbone = ', '.join(f'{key}={value!r}'
                             for key, value in self.arguments.items())
        cfg = ("default_scope = 'mmpretrain'\n"
               f'model = dict(backbone=dict({backbone}))\n')
        return dict(
            state_dict={
                f'backbone.{key}': value
                for key, value in self.network.state_dict().items()
            }, meta=dict(cfg=cfg, us3l_mm_version=__version__, source=source))


def from_us3l(weights: State,
              calibrated: Optional[Dict[float, State]] = None) -> Converted:
    """The student's backbone in a file of the authors' US3L code.

    That code trains without running statistics and writes, after calibrating
    a width, a file of the whole network in which the leading channels of the
    running statistics are those of that width.

    Args:
        weights (dict): With keys ``module.encoder_q.*``.
        calibrated (dict, optional): Such a file's weights by its width.

    Raises:
        ValueError: if there is no such backbone, or if a calibrated file is of
            other weights.
    """
    prefix = find_prefix(weights, (US3L_PREFIX, 'encoder_q.'))
    converted = _convert(weights, prefix)
    for width, other in (calibrated or {}).items():
        _take_statistics(
            converted.network,
            _backbone(other, find_prefix(other, (US3L_PREFIX, 'encoder_q.'))),
            width)
    return converted


def from_plain(weights: State, prefix: Optional[str] = None,
               style: str = 'pytorch') -> Converted:
    """An ordinary ResNet of MMPretrain, torchvision and the like.

    The result computes at full width what that network does, which is
    checked; its statistics are those of the full width.

    Args:
        weights (dict): Bare, or with a prefix such as ``backbone.``.
        prefix (str, optional): Of the keys. Defaults to the one that is found.
        style (str): 'pytorch', or 'caffe' where bottlenecks stride in their
            first convolution, which weights do not show.

    Raises:
        ValueError: if there is no ResNet, or several.
    """
    prefix = find_prefix(weights, None if prefix is None else (prefix, ))
    converted = _convert(weights, prefix, style)
    own = _backbone(weights, prefix)
    if 'bn1.running_mean' in own or 'stem.0.bn.running_mean' in own:
        _take_statistics(converted.network, own, 1.0)
        _compare(converted, own)
    return converted


def find_prefix(weights: State, candidates: Optional[tuple] = None) -> str:
    """What stands before the keys of the ResNet in ``weights``."""
    end = 'layer1.0.conv1.weight'
    found = sorted({key[:-len(end)] for key in weights if key.endswith(end)})
    if candidates is not None:
        found = [prefix for prefix in candidates if prefix in found]
        if found:
            return found[0]
    if len(found) == 1:
        return found[0]
    wanted = '' if candidates is None else f' under {" or ".join(candidates)}'
    raise ValueError(
        f'There is no ResNet{wanted} in the file, whose keys are such as '
        f'{sorted(weights)[:3]}.' if not found else
        f'There are several ResNets in the file, with the prefixes {found}: '
        'say which one with --prefix.')


def infer_arguments(weights: State, style: str = 'pytorch') -> dict:
    """The arguments of the slimmable ResNet that bare ``weights`` are of."""
    stages = []
    while f'layer{len(stages) + 1}.0.conv1.weight' in weights:
        stem = f'layer{len(stages) + 1}.'
        stages.append(1 + max(
            int(key[len(stem):].split('.')[0])
            for key in weights if key.startswith(stem)))
    is_bottleneck = 'layer1.0.conv3.weight' in weights
    depths = [
        depth for depth, (block, blocks) in ResNet.arch_settings.items()
        if blocks == tuple(stages) and (block is Bottleneck) == is_bottleneck
    ]
    if not depths:
        raise ValueError(
            f'No ResNet has {stages} blocks '
            f'{"with" if is_bottleneck else "without"} bottleneck; the depths '
            f'are {sorted(ResNet.arch_settings)}.')
    deep_stem = 'stem.0.conv.weight' in weights
    stem = weights['stem.2.conv.weight' if deep_stem else 'conv1.weight']
    is_cifar = not deep_stem and stem.shape[2] == 3
    arguments = dict(
        type='us3l_mm.SlimmableResNet' + ('_CIFAR' if is_cifar else ''),
        depth=depths[0])
    extra = dict(
        stem_channels=stem.shape[0], deep_stem=deep_stem, style=style,
        base_channels=weights['layer1.0.conv1.weight'].shape[0],
        avg_down=weights['layer2.0.downsample.1.weight'].ndim == 4,
        in_channels=weights[
            'stem.0.conv.weight' if deep_stem else 'conv1.weight'].shape[1])
    usual = dict(stem_channels=64, base_channels=64, deep_stem=False,
                 avg_down=False, in_channels=3, style='pytorch')
    return {
        **arguments,
        **{key: value
           for key, value in extra.items() if value != usual[key]}
    }


def _convert(weights: State, prefix: str, style: str = 'pytorch') -> Converted:
    own = _backbone(weights, prefix)
    arguments = infer_arguments(own, style)
    cls = (SlimmableResNet_CIFAR
           if arguments['type'].endswith('_CIFAR') else SlimmableResNet)
    network = cls(**{k: v for k, v in arguments.items() if k != 'type'})
    parts = dict(network.named_children())
    network.load_state_dict(
        {
            key: value
            for key, value in own.items()
            if key.split('.')[0] in parts and not _is_statistic(key)
        }, strict=False)
    left_out = sorted({
        _part(key, prefix)
        for key in weights
        if _part(key, prefix) not in {prefix + part
                                      for part in parts}
    })
    return Converted(network.eval(), arguments, left_out)


def _part(key: str, prefix: str) -> str:
    """The part of the whole model that ``key`` belongs to."""
    if key.startswith(prefix):
        return prefix + key[len(prefix):].split('.')[0]
    wrapper = 'module.' if key.startswith('module.') else ''
    return wrapper + key[len(wrapper):].split('.')[0]


def _backbone(weights: State, prefix: str) -> State:
    return {
        key[len(prefix):]: value
        for key, value in weights.items() if key.startswith(prefix)
    }


def _is_statistic(key: str) -> bool:
    return key.endswith(('running_mean', 'running_var', 'num_batches_tracked'))


def _take_statistics(network: nn.Module, own: State, width: float) -> None:
    """Store the leading running statistics of ``own`` as those of a width."""
    width = Subnet.of(width).check(network.width_range).width
    for key, value in network.state_dict().items():
        if not _is_statistic(key.rsplit('_w', 1)[0]) and (
                key not in own or not torch.equal(own[key].to(value), value)):
            raise ValueError(
                f'The file of statistics for width {width:g} is of another '
                f'network: its {key} is not the same.')
    for name, norm in network.named_modules():
        if isinstance(norm, SlimmableBatchNorm):
            if f'{name}.running_mean' not in own:
                raise ValueError(f'The file given for width {width:g} has no '
                                 f'running statistics of {name}.')
            c = norm.active(width)
            norm.set_statistics(width, own[f'{name}.running_mean'][:c],
                                own[f'{name}.running_var'][:c])


@torch.no_grad()
def _compare(converted: Converted, own: State) -> None:
    """Raise unless the full width computes what the plain network does."""
    network = converted.network
    plain = family_of(network).stock_class(network)(**{
        key: value
        for key, value in converted.arguments.items() if key != 'type'
    })
    plain.load_state_dict(own, strict=False)
    plain.eval()
    images = torch.randn(2, converted.arguments.get('in_channels', 3), 64, 64,
                         generator=torch.Generator().manual_seed(0))
    if not torch.equal(plain(images)[-1], network(images)[-1]):
        raise ValueError('The converted network does not compute what the '
                         'plain one does; nothing was written.')
