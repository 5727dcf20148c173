# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The slimmable backbone of a checkpoint or of a config."""
from dataclasses import dataclass
from typing import Dict, Optional, Union

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from mmengine.utils import import_modules_from_strings
from torch import Tensor, nn

from us3l_mm.export.architecture import build_stored_backbone, stored_model
from us3l_mm.fileio import load_weights
from us3l_mm.models.layers import slimmable_layers
from us3l_mm.registry import MODELS


@dataclass(frozen=True)
class Source:
    """A checkpoint and the network in it.

    Attributes:
        backbone (nn.Module): On the CPU, in evaluation mode.
        preprocessing (dict): The preprocessing of its images, as in a config.
        preprocessor (nn.Module, optional): The module that performs it; None
            without a config.
    """

    backbone: nn.Module
    preprocessing: dict
    preprocessor: Optional[nn.Module] = None


def load_backbone(checkpoint: Union[str, dict], config: Union[str, Config,
                                                              None] = None,
                  trust_pickle: bool = False) -> nn.Module:
    """The slimmable backbone of a checkpoint, with its statistics.

    Args:
        checkpoint (str or dict): A file that a training, a converter or
            ``tools/evaluate_widths.py --save-checkpoint`` wrote, or its
            content.
        config (str or Config, optional): The config of the training; a file
            is executed. Defaults to the config that MMEngine stores in the
            checkpoint, of which only the model is parsed.
        trust_pickle (bool): Whether to read a file that executes code when it
            is read. Defaults to False.

    Returns:
        nn.Module: The backbone at full width, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError, ValueError: If there is no such file, it cannot be
            read, or its weights are those of another network.
    """
    return load_source(checkpoint, config, trust_pickle).backbone


def load_source(checkpoint: Union[str, dict], config: Union[str, Config,
                                                            None] = None,
                trust_pickle: bool = False) -> Source:
    """:func:`load_backbone`, with the preprocessing of the images."""
    content = (load_weights(checkpoint, trust_pickle) if isinstance(
        checkpoint, str) else checkpoint)
    if config is None:
        model = stored_model(content)
        backbone, preprocessor = build_stored_backbone(model), None
    else:
        config = (Config.fromfile(config)
                  if isinstance(config, str) else config)
        algorithm = build_algorithm(config)
        model = model_cfg(config)
        backbone = algorithm.backbone.eval()
        preprocessor = algorithm.data_preprocessor
    try:
        backbone.load_state_dict(
            _backbone_weights(backbone, content['state_dict']))
    except RuntimeError as error:  # statistics; the backbone checks the rest
        raise ValueError('The weights do not fit the network: '
                         f'{error}') from None
    return Source(backbone, model.get('data_preprocessor') or {}, preprocessor)


def _backbone_weights(backbone: nn.Module,
                      state_dict: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The weights of a backbone in those of a model, or among bare ones."""
    prefix = backbone_prefix(state_dict)
    # Bare networks from elsewhere have a classifier, which is not needed.
    parts = {name.split('.')[0] for name in backbone.state_dict()}
    return {
        key[len(prefix):]: value for key, value in state_dict.items()
        if key.startswith(prefix) and key[len(prefix):].split('.')[0] in parts}


def untrained_network(config: Config, seed: int = 0) -> nn.Module:
    """The backbone of ``config`` with initial weights, drawn from ``seed``."""
    set_random_seed(seed)  # a constructor may draw weights as well
    backbone = build_algorithm(config).backbone.eval()
    if isinstance(backbone.init_cfg, dict):  # such as Pretrained
        backbone.init_cfg = None
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
