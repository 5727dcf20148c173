# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Whether a backbone, ours or a stock one, holds the weights of a file.

MMEngine loads ``init_cfg=dict(type='Pretrained', ...)`` with ``strict=False``
and only logs what does not fit, so a stock network that is given the file of
another width trains from scratch unnoticed.
"""
from typing import Iterator, Optional

import torch
from mmengine.runner import CheckpointLoader
from torch import nn

from us3l_mm.fileio import Misfit, check_fit
from .weights import adapt_backbone, describe

# Classes whose files have the keys of the network, by our class that extends
# them. Others, such as MMDetection's Swin, rename keys while they load.
KNOWN = {
    'GatedResNet': 'GatedResNet',
    'GatedResNet_CIFAR': 'GatedResNet',
    'PrunedResNet': 'PrunedResNet',
    'PrunedResNet_CIFAR': 'PrunedResNet',
    'ResNet': 'SlimmableResNet',
    'ResNet_CIFAR': 'SlimmableResNet',
    'ResNeXt': 'SlimmableResNet',
    'ResNetV1c': 'SlimmableResNet',
    'ResNetV1d': 'SlimmableResNet',
    'SlimmableResNet': 'SlimmableResNet',
    'SlimmableResNet_CIFAR': 'SlimmableResNet',
    'VisionTransformer': 'SlimmableViT',
    'SlimmableViT': 'SlimmableViT',
    'MobileNetV2': 'SlimmableMobileNetV2',
    'SlimmableMobileNetV2': 'SlimmableMobileNetV2',
    'SlimmableMobileNetV2_CIFAR': 'SlimmableMobileNetV2'}


def is_known(backbone: nn.Module) -> bool:
    """Whether the weights of ``backbone`` can be compared with a file."""
    return type(backbone).__name__ in KNOWN


def pretrained_cfg(backbone: Optional[nn.Module]) -> Optional[dict]:
    """The ``init_cfg`` of ``backbone`` if it names a file, else None."""
    cfg = getattr(backbone, 'init_cfg', None)
    kind = cfg.get('type') if isinstance(cfg, dict) else None
    is_pretrained = getattr(kind, '__name__',
                            kind) in ('Pretrained', 'PretrainedInit')
    return cfg if is_pretrained else None


def check_weights(backbone: nn.Module, path: str,
                  prefix: Optional[str] = None) -> None:
    """Compare ``backbone`` with the weights of a file, tensor by tensor.

    Args:
        backbone (nn.Module): A network for which :func:`is_known` holds.
        path (str): The file of the weights that it should hold, or of those of
            the full network if it slices them itself
            (``SlimmableResNet(width=...)``); a URL, or the name of a model
            zoo's file.
        prefix (str, optional): What precedes the names of the backbone in the
            file. Defaults to None: nothing.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the backbone does not hold these weights, with the
            tensors and what to do.
    """
    content = CheckpointLoader.load_checkpoint(path, logger='silent')
    state = content.get('state_dict', content)  # of a scheme of the user's
    prefix = f'{prefix.rstrip(".")}.' if prefix else ''
    weights = {  # named as MMEngine names them
        key.removeprefix(prefix or 'module.'): value
        for key, value in state.items() if key.startswith(prefix)}
    adapt_backbone(backbone, weights)
    optional = tuple(_optional(backbone))

    def fit(own, advice) -> dict:
        needed = {
            name: value for name, value in own
            if name in weights or not name.startswith(optional)}
        check_fit(needed, weights, f'{describe(backbone)} of the config',
                  advice, path, prefix, backbone._modules, list(state))
        return needed

    fit(
        backbone.named_parameters(),
        lambda misfit: _advice(backbone, misfit,
                               content.get('meta') or {}, path))
    if getattr(backbone, 'slicing_record', None) is not None:
        backbone.slicing_record.pick_statistics(backbone, weights, '')
    needed = fit(
        backbone.state_dict().items(),
        'Batch norms need their statistics: use a file that '
        'tools/slice_checkpoint.py or tools/evaluate_widths.py '
        '--save-checkpoint wrote.')
    unequal = [
        name for name, value in needed.items()
        if not torch.equal(value.detach().cpu(), weights[name].detach().to(
            value.dtype).cpu())]
    if unequal:
        raise ValueError(
            f'{len(unequal)} of the {len(needed)} tensors of the '
            f'{describe(backbone)} are not those of {path}, although names '
            f'and shapes fit: {", ".join(unequal[:3])}. They were not loaded, '
            'or were overwritten later: is there a hook or an init_weights() '
            'that draws new ones?')


def _optional(backbone: nn.Module) -> Iterator[str]:
    """The beginnings of names that a file of a plain network need not have.

    These are counters, which old files lack; what deformable convolutions and
    plugins add to a network; and the statistics of a network of any width.
    """
    for name in backbone.state_dict():
        if name.endswith('num_batches_tracked') or '.conv_offset.' in name:
            yield name
    for stem, block in backbone.named_modules():
        for place in ('after_conv1', 'after_conv2', 'after_conv3'):
            for plugin in getattr(block, f'{place}_plugin_names', ()):
                yield f'{stem}.{plugin}.'
    if getattr(backbone, 'width', 1.0) is None:
        yield from (name for name, _ in backbone.named_buffers())


def _advice(backbone: nn.Module, misfit: Misfit, meta: dict, path: str) -> str:
    """What to do about a file of another network."""
    inner = (meta.get('architecture') or {}).get('mid_channels')
    if inner is not None:
        return ('It is the file of a pruned network: set model.backbone.type='
                f'us3l_mm.PrunedResNet and model.backbone.mid_channels={inner}'
                ' for it.')
    if misfit.missing or misfit.unknown:
        return ('They are networks of different depth or of other layers: '
                'build the model like the file, for instance by backbone.depth'
                ' or backbone.arch.')
    ours = KNOWN[type(backbone).__name__]
    if ours == 'GatedResNet':
        return ('Build the model like the file, by backbone.base_channels, '
                'backbone.stem_channels and backbone.reduction of the gates.')
    channels = [
        weights['conv1.weight'].shape[0] if 'conv1.weight' in weights else 0
        for weights in (misfit.given, misfit.own)]
    there, here = channels
    if ours != 'SlimmableResNet' or there == here:
        return (
            'Use the file of a network with the same channels: '
            'tools/slice_checkpoint.py CKPT OUT --width W --format mmdet '
            'slices a width and prints the config of its backbone; or give '
            f'us3l_mm.{ours}(width=W) the file of the full network.')
    width = meta.get('width') or there / 64
    ratio = width * here / there
    text = (f'The file has {there} channels in its first convolution (width '
            f'{width:g}), the model {here} (width {ratio:g}). ')
    if there < here:
        return text + (
            'Build the model like the file: backbone.base_channels='
            f'{there}, backbone.stem_channels={there} and the in_channels of '
            'the neck, or use the config of that width.')
    # A slice cannot be sliced again, but names the file it was sliced from.
    source = (meta.get('source') or {}).get('file', path)
    return text + (
        f'Slice that width: tools/slice_checkpoint.py {source} OUT --width '
        f'{ratio:g} --format mmdet, and name OUT as init_cfg.checkpoint; or '
        f'give us3l_mm.{ours}(width={ratio:g}) the file of the full network.')


def check_neck(model: nn.Module) -> None:
    """Refuse a neck that was built for maps of other widths.

    Raises:
        ValueError: With the right ``in_channels``.
    """
    wanted = getattr(getattr(model, 'neck', None), 'in_channels', None)
    backbone = model.backbone
    if not isinstance(wanted, (list, tuple)):
        return
    if hasattr(backbone, 'out_channels'):
        given = list(backbone.out_channels)
    elif is_known(backbone) and hasattr(backbone, 'res_layers'):
        blocks = [
            getattr(backbone, backbone.res_layers[i])[-1]
            for i in backbone.out_indices]
        given = [getattr(b, 'conv3', b.conv2).out_channels for b in blocks]
    else:
        return
    if list(wanted) != given:
        raise ValueError(
            f'neck.in_channels={list(wanted)}, but the {describe(backbone)} '
            f'before it gives {given} channels. Set model.neck.in_channels='
            f"{given}, or model.type='us3l_mm.SubnetDetector' with detector="
            f'{type(model).__name__!r}, where they follow the width.')
