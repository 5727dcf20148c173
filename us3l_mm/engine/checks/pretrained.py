# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Whether a backbone holds the weights of the file that it should.

MMEngine loads ``init_cfg=dict(type='Pretrained', ...)`` with ``strict=False``
and only logs what does not fit, so a network that is given the file of another
width trains from scratch unnoticed.
"""
import os
import re
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

import torch
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from us3l_mm.fileio import check_fit, load_weights
from us3l_mm.models.backbones.weights import adapt_backbone, describe

# Backbones whose checkpoints have the keys of the network; others, such as
# MMDetection's Swin, translate those of elsewhere while they load.
TRANSFORMERS = {'VisionTransformer', 'SlimmableViT'}
MOBILE = {'MobileNetV2', 'SlimmableMobileNetV2', 'SlimmableMobileNetV2_CIFAR'}
KNOWN = {
    'ResNet', 'ResNet_CIFAR', 'ResNeXt', 'ResNetV1c', 'ResNetV1d',
    'SlimmableResNet', 'SlimmableResNet_CIFAR', *TRANSFORMERS, *MOBILE
}
SHOWN = 3  # tensors of each kind in a message


@dataclass(frozen=True)
class WeightFile:
    """The weights of a backbone in a file.

    Attributes:
        path (str): Or URL, as ``init_cfg.checkpoint`` says it.
        prefix (str): Of the keys, '' where there is none.
        weights (dict[str, Tensor]): By name inside the backbone.
        keys (list[str]): Of the whole file.
        meta (dict): What the file says about itself.
    """

    path: str
    prefix: str
    weights: Dict[str, Tensor]
    keys: List[str]
    meta: dict


def pretrained_cfg(backbone: nn.Module) -> Optional[dict]:
    """The ``init_cfg`` of ``backbone`` if it names a file, else None."""
    cfg = getattr(backbone, 'init_cfg', None)
    is_pretrained = isinstance(cfg, dict) and getattr(
        cfg.get('type'), '__name__',
        cfg.get('type')) in ('Pretrained', 'PretrainedInit')
    return cfg if is_pretrained else None


def read_file(path: str, prefix: Optional[str]) -> WeightFile:
    """The weights under ``prefix`` of a file, a URL or a model zoo's name.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_weights`.
    """
    if '://' in path:
        content = CheckpointLoader.load_checkpoint(path, map_location='cpu')
        content = content if 'state_dict' in content else dict(
            state_dict=content)
    else:
        content = load_weights(
            path, trust_pickle=os.environ.get('TORCH_FORCE_WEIGHTS_ONLY_LOAD')
            == '0')
    prefix = prefix or ''
    if prefix and not prefix.endswith('.'):
        prefix += '.'
    weights = {
        key[len(prefix):]: value
        for key, value in content['state_dict'].items()
        if key.startswith(prefix)
    }
    if not prefix:  # as MMEngine's load_checkpoint
        weights = {
            key.removeprefix('module.'): value
            for key, value in weights.items()
        }
    meta = content.get('meta')
    return WeightFile(path, prefix, weights, sorted(content['state_dict']),
                      meta if isinstance(meta, dict) else {})


def check_weights(backbone: nn.Module, file: WeightFile,
                  values: bool = True) -> None:
    """Compare ``backbone`` with ``file``, tensor by tensor.

    Args:
        backbone (nn.Module): One of :data:`KNOWN`.
        file (WeightFile): The weights that it should hold, or those of the
            full network if it slices them itself
            (``SlimmableResNet(width=...)``).
        values (bool): Whether to compare the numbers too; False before they
            are loaded. Defaults to True.

    Raises:
        ValueError: With the tensors, what the file and the backbone are, and
            what to do.
    """
    expected = dict(file.weights)
    adapt_backbone(backbone, expected)
    own, optional = backbone.state_dict(), _optional(backbone)
    check_fit(
        {
            name: value
            for name, value in backbone.named_parameters()
            if name in expected or name not in optional
        }, expected, f'{describe(backbone)} of the config',
        lambda misfit: _advice(backbone, file), file.path, file.prefix,
        backbone._modules, file.keys)
    if getattr(backbone, 'slicing_record', None) is not None:
        backbone.slicing_record.pick_statistics(backbone, expected, '')
    needed = {
        name: value
        for name, value in own.items()
        if name in expected or name not in optional
    }
    missing = [name for name in needed if name not in expected]
    if missing:
        raise ValueError(
            f'{file.path} lacks batch-norm statistics of {describe(backbone)}'
            f': {_few(missing)}. Use a file that tools/slice_checkpoint.py '
            'or tools/evaluate_widths.py --save-checkpoint wrote.')
    unequal = [
        name for name, value in needed.items()
        if values and not _equal(value, expected[name])
    ]
    if unequal:
        raise ValueError(
            f'{len(unequal)} of the {len(needed)} tensors of the '
            f'{describe(backbone)} that begins to train are not those of '
            f'{file.path}, though names and shapes fit: {_few(unequal)}. They '
            'were not loaded, or overwritten later: is there a hook or an '
            'init_weights() that draws new ones?')


def _equal(value: Tensor, there: Tensor) -> bool:
    there = there.detach().to(value.dtype).cpu()
    return torch.equal(value.detach().cpu(), there)


def _optional(backbone: nn.Module) -> set:
    """Names that a file of a plain network need not have.

    Counters, which old files lack; what deformable convolutions and plugins
    add to a network; statistics of a network that runs at any width.
    """
    names = {
        name
        for name in backbone.state_dict()
        if name.endswith('num_batches_tracked') or '.conv_offset.' in name
    }
    for stem, block in backbone.named_modules():
        for place in ('after_conv1', 'after_conv2', 'after_conv3'):
            for plugin in getattr(block, f'{place}_plugin_names', ()):
                names |= {
                    f'{stem}.{plugin}.{name}'
                    for name in getattr(block, plugin).state_dict()
                }
    if getattr(backbone, 'width', 1.0) is None:
        names |= {name for name, _ in backbone.named_buffers()}
    return names


def outline(weights: Dict[str, Tensor]) -> Tuple[int, str]:
    """Channels of the first convolution of a ResNet, and its depth in words.
    """
    stem = next((value.shape[0] for name, value in weights.items()
                 if name in ('conv1.weight', 'stem.0.weight')), 0)
    blocks: Dict[int, int] = {}
    for name in weights:
        found = re.match(r'layer(\d+)\.(\d+)\.', name)
        if found:
            stage, block = map(int, found.groups())
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
    convolutions = 3 if any('.conv3.' in name for name in weights) else 2
    return stem, (f'blocks {tuple(blocks[stage] for stage in sorted(blocks))} '
                  f'of {convolutions} convolutions')


def _advice(backbone: nn.Module, file: WeightFile) -> str:
    """What to do about a file of another network."""
    name = type(backbone).__name__
    if name in TRANSFORMERS | MOBILE:
        ours = ('SlimmableViT'
                if name in TRANSFORMERS else 'SlimmableMobileNetV2')
        return (
            'Use the file of a network with the same layers: '
            'tools/slice_checkpoint.py CKPT OUT --width W --format mmdet '
            'slices a width and prints the config of its backbone; or give '
            f'us3l_mm.{ours}(width=W) the file of the full network.')
    there, blocks = outline(file.weights)
    here, own_blocks = outline(dict(backbone.named_parameters()))
    width = file.meta.get('width')
    text = (f'The file has {there} channels in its first convolution' +
            (f' (width {width:g})'
             if width is not None else f' (width {there / 64:g} of 64)') +
            f' and {blocks}; the model {here} '
            f'(width {_width(backbone, here):g}) and {own_blocks}. ')
    if blocks != own_blocks:
        return text + ('They are networks of different depth: set '
                       'backbone.depth to that of the file.')
    if there > here:
        ratio = here / there * (width or 1.0)
        # A slice cannot be sliced again, but names the file it comes from.
        source = (file.meta.get('source') or {}).get('file', file.path)
        return text + (
            f'Slice that width: tools/slice_checkpoint.py {source} OUT '
            f'--width {ratio:g} --format mmdet, and name OUT as '
            'init_cfg.checkpoint; or give '
            f'us3l_mm.SlimmableResNet(width={ratio:g}) the file of the full '
            'network.')
    if there < here:
        return text + (
            'Build the model like the file: backbone.base_channels='
            f'{there}, backbone.stem_channels={there} and the in_channels of '
            'the neck, or use the config of that width.')
    return text + 'Use the file of a network with the same layers.'


def _width(backbone: nn.Module, stem: int) -> float:
    width = getattr(backbone, 'width', None)
    return stem / 64 if width is None else width


def _few(names: List[str]) -> str:
    more = len(names) - SHOWN
    return ', '.join(names[:SHOWN]) + (f' and {more} more' if more > 0 else '')


def output_channels(backbone: nn.Module) -> Optional[Tuple[int, ...]]:
    """Channels of the maps that a backbone returns; None where unknown."""
    if hasattr(backbone, 'out_channels'):
        return tuple(backbone.out_channels)
    if type(backbone).__name__ not in KNOWN - MOBILE:
        return None
    if type(backbone).__name__ in TRANSFORMERS:
        return (backbone.embed_dims, ) * len(backbone.out_indices)
    channels = []
    for index in backbone.out_indices:
        block = getattr(backbone, backbone.res_layers[index])[-1]
        last = getattr(block, 'conv3', block.conv2)
        channels.append(last.out_channels)
    return tuple(channels)


def check_neck(model: nn.Module) -> None:
    """Refuse a neck that was built for maps of other widths.

    Raises:
        ValueError: with the right ``in_channels``.
    """
    wanted = getattr(getattr(model, 'neck', None), 'in_channels', None)
    if not isinstance(wanted, (list, tuple)):
        return
    given = output_channels(model.backbone)
    if given is not None and tuple(wanted) != given:
        raise ValueError(
            f'neck.in_channels={list(wanted)}, but the '
            f'{describe(model.backbone)} before it gives {list(given)} '
            f'channels. Set model.neck.in_channels={list(given)}, or '
            "model.type='us3l_mm.SubnetDetector' with detector="
            f'{type(model).__name__!r}, where they follow the width.')
