# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Checkpoints for MMPretrain and MMDetection, which read the same file.

Keys begin with ``backbone.``, as in every checkpoint of these libraries, so
that ``init_cfg=dict(type='Pretrained', ..., prefix='backbone.')`` works.
"""
from typing import Any, Tuple

from us3l_mm.fileio import to_bytes
from us3l_mm.registry import MODELS
from .artifact import Artifact, SlicedNetwork, read_back

PREFIX = 'backbone.'


def mmpretrain(network: SlicedNetwork) -> Artifact:
    """A checkpoint for a classifier or another model of MMPretrain."""
    backbone, is_stock = consumer_arguments(network)
    config = dict(backbone=backbone,
                  head=dict(in_channels=network.map_channels[-1]))
    return _artifact(network, 'MMPretrain', config, is_stock)


def mmdet(network: SlicedNetwork) -> Artifact:
    """A checkpoint for a detector of MMDetection with a feature pyramid."""
    backbone, is_stock = consumer_arguments(network)
    family = network.family
    if is_stock and backbone['type'] not in family.mmdet_names:
        backbone['type'] = f'mmpretrain.{backbone["type"]}'
    backbone.update(family.detector_arguments(network.plain))
    config = dict(backbone=backbone, neck=family.detector_neck(network.plain))
    return _artifact(network, 'MMDetection', config, is_stock
                     and 'type' not in config['neck'])


def consumer_arguments(network: SlicedNetwork) -> Tuple[dict, bool]:
    """The config of the backbone that loads the weights.

    Returns:
        tuple: The config, and whether it is of a stock class. It is wherever
        a stock class can have these channels.
    """
    slimmable, width, family = network.backbone, network.width, network.family
    arguments = family.plain_arguments(slimmable, width)
    if arguments is not None:
        name = family.stock_class(slimmable).__name__
        return dict(type=name, **arguments), True
    return family.own_arguments(slimmable, width), False


def _artifact(network: SlicedNetwork, library: str, config: dict,
              is_stock: bool) -> Artifact:
    config['backbone']['init_cfg'] = dict(
        type='Pretrained', checkpoint=network.out, prefix=PREFIX)
    if not is_stock:
        config = dict(
            custom_imports=dict(imports=['us3l_mm'],
                                allow_failed_imports=False), **config)

    def write():
        return to_bytes(
            dict(
                state_dict={
                    PREFIX + name: value
                    for name, value in network.plain.state_dict().items()},
                meta=network.meta))

    def run(content, images):
        arguments, is_stock = consumer_arguments(network)
        if is_stock:
            # MMDetection's ResNet has MMPretrain's layers and keys.
            arguments['type'] = f'mmpretrain.{arguments["type"]}'
        consumer = MODELS.build(
            dict(arguments, out_indices=network.backbone.out_indices))
        consumer.load_state_dict(
            {
                name.removeprefix(PREFIX): value
                for name, value in read_back(content)['state_dict'].items()},
            strict=True)
        consumer.eval()  # returns None for MMPretrain's backbones
        return consumer(images)

    usage = '\n'.join(f'{name} = {_expression(value)}'
                      for name, value in config.items())
    return Artifact(write, run, f'# In a config of {library}:\n{usage}\n')


def _expression(value: Any, indent: str = '') -> str:
    """The Python code of ``value``, formatted as in a config."""
    if not isinstance(value, dict):
        return repr(value)
    inner = indent + '    '
    items = ''.join(f'{inner}{k}={_expression(v, inner)},\n'
                    for k, v in value.items())
    return f'dict(\n{items}{indent})'
