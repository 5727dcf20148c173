# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The network of a config, with weights of a checkpoint or initial ones."""
from typing import Tuple

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from mmengine.utils import import_modules_from_strings
from torch import nn

from us3l_mm.export.architecture import parts_of
from us3l_mm.models.layers import slimmable_layers
from us3l_mm.registry import MODELS


def load_network(config: Config,
                 checkpoint: dict) -> Tuple[nn.Module, nn.Module]:
    """The backbone with the weights of ``checkpoint``, and its preprocessor.

    Args:
        config (Config): Of the pre-training; its ``model`` is built.
        checkpoint (dict): With a ``state_dict``, the algorithm's or the
            backbone's.

    Returns:
        tuple: Backbone and data preprocessor, on the CPU, in evaluation mode.

    Raises:
        ValueError: if the checkpoint is of another network.
    """
    algorithm = build_algorithm(config)
    backbone, weights = algorithm.backbone, checkpoint['state_dict']
    parts, prefix = parts_of(backbone), backbone_prefix(weights)
    weights = {
        key[len(prefix):]: value
        for key, value in weights.items() if key.startswith(prefix)
    }
    try:
        # Bare networks of elsewhere have a classifier, which is not needed.
        backbone.load_state_dict({
            key: value
            for key, value in weights.items() if key.split('.')[0] in parts
        })
    except RuntimeError as error:
        raise ValueError(
            f'The checkpoint does not fit the config: {error}') from None
    return backbone.eval(), algorithm.data_preprocessor


def untrained_network(config: Config, seed: int = 0) -> nn.Module:
    """The backbone of ``config`` with initial weights, drawn from ``seed``."""
    backbone = build_algorithm(config).backbone.eval()
    if isinstance(backbone.init_cfg, dict):  # such as Pretrained
        backbone.init_cfg = None
    set_random_seed(seed)
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')  # MMEngine would list every parameter
    backbone.init_weights()
    logger.setLevel(level)
    return backbone


def build_algorithm(config: Config) -> nn.Module:
    """The model of ``config``, with initial weights not yet drawn."""
    if 'model' not in config:
        raise ValueError(f'{config.filename} has no model.')
    set_scope(config)
    algorithm = MODELS.build(model_cfg(config))
    backbone = getattr(algorithm, 'backbone', None)
    if backbone is None or not any(slimmable_layers(backbone)):
        raise ValueError(
            f'The model of {config.filename} has no slimmable backbone, got '
            f'{config.model.type} with {type(backbone).__name__}.')
    return algorithm


def model_cfg(config: Config) -> dict:
    """The model as MMEngine's Runner builds it, with its preprocessor."""
    model = config.model.to_dict()
    if config.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor',
                         config.data_preprocessor.to_dict())
    return model


def set_scope(config: Config) -> None:
    """Let types without a prefix mean what they mean to ``config``."""
    import_modules_from_strings(
        **config.get('custom_imports', dict(imports=['us3l_mm'])))
    init_default_scope(config.get('default_scope', 'mmpretrain'))


def backbone_prefix(state_dict: dict) -> str:
    """'backbone.' where the weights are an algorithm's, '' if a backbone's."""
    return 'backbone.' if any(
        key.startswith('backbone.') for key in state_dict) else ''
