# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The slimmable backbone of a checkpoint or of a config."""
import os.path as osp
from dataclasses import dataclass
from glob import escape, glob
from os import PathLike, fspath
from typing import Dict, Optional, Union

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from mmengine.utils import import_modules_from_strings
from torch import Tensor, nn

from us3l_mm.export.architecture import (build_stored_backbone, read_as_data,
                                         stored_model)
from us3l_mm.fileio import load_weights
from us3l_mm.models.backbones.weights import describe
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
                trust_pickle: bool = False, path: str = '') -> Source:
    """:func:`load_backbone`, with the preprocessing of the images.

    An error names the config of the run beside ``path``, the file of the
    checkpoint where ``checkpoint`` is its content.
    """
    content = _content(checkpoint, trust_pickle)
    hint = ''
    if config is None:
        model = stored_model(content)
        backbone, preprocessor = build_stored_backbone(model), None
    else:
        if isinstance(config, (str, PathLike)):
            config = Config.fromfile(config)
        if not isinstance(config, Config):
            raise TypeError('A config is the path of a file or a Config, got '
                            f'a {type(config).__name__}.')
        algorithm = build_algorithm(config)
        model = model_cfg(config)
        backbone = algorithm.backbone.eval()
        preprocessor = algorithm.data_preprocessor
        path = checkpoint if isinstance(checkpoint, str) else path
        own = saved_config(path) if path else None
        hint = f'\nThe network is that of the config {config.filename}.' + (
            f' The run saved its own as {own}.' if own else '')
    try:
        backbone.load_state_dict(
            _backbone_weights(backbone, content['state_dict']))
    except RuntimeError as error:  # statistics; the backbone checks the rest
        raise ValueError('The weights do not fit the network: '
                         f'{error}{hint}') from None
    except ValueError as error:
        raise ValueError(f'{error}{hint}') from None
    return Source(backbone, model.get('data_preprocessor') or {}, preprocessor)


def _content(checkpoint: Union[str, dict], trust_pickle: bool) -> dict:
    if isinstance(checkpoint, dict):
        if not isinstance(checkpoint.get('state_dict'), dict):
            raise ValueError(
                'A checkpoint that is a dict has its weights as state_dict, '
                f'got the keys {sorted(map(str, checkpoint))[:5]}.')
        return checkpoint
    if not isinstance(checkpoint, (str, PathLike)):
        raise TypeError('A checkpoint is the path of a file or its content, '
                        f'got a {type(checkpoint).__name__}.')
    return load_weights(fspath(checkpoint), trust_pickle)


def saved_config(checkpoint: str) -> Optional[str]:
    """The file in which the run of a checkpoint saved its config.

    MMEngine's Runner writes ``<name of the config>.py`` into the work dir,
    and ``<time>/vis_data/config.py`` for each start of a run. It is Python:
    :func:`run_config` reads it without executing it.

    Args:
        checkpoint (str): The path of the checkpoint.

    Returns:
        str, optional: The file; None if there is none, or there are several
        and it is not known which one it is.
    """
    folder = osp.dirname(osp.abspath(checkpoint))
    for pattern in ('*.py', '*/vis_data/config.py'):
        found = glob(osp.join(escape(folder), pattern))
        if len(found) == 1:
            return found[0]
    return None


def run_config(checkpoint: str, content: dict) -> Optional[Config]:
    """The config of the run that wrote a checkpoint, read as plain data.

    It is the one that MMEngine stored in the checkpoint, or else the one that
    :func:`saved_config` finds.

    Args:
        checkpoint (str): The path of the checkpoint.
        content (dict): What :func:`~us3l_mm.fileio.load_weights` read from
            it.

    Returns:
        Config, optional: The config, whose ``filename`` is the file that it
        was read from; None if there is none with the data of the run.

    Raises:
        ValueError: If it is not plain data.
    """
    text, path = (content.get('meta') or {}).get('cfg'), checkpoint
    values = read_as_data(text) if isinstance(text, str) else {}
    if 'train_dataloader' not in values:  # a converter writes the model alone
        saved = saved_config(checkpoint)
        if saved is None:
            return None
        with open(saved) as file:
            text, path = file.read(), saved
        values = read_as_data(text)
    return Config(values, cfg_text=text, filename=path)


def _backbone_weights(backbone: nn.Module,
                      state_dict: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The weights of a backbone in those of a model, or among bare ones."""
    prefix = backbone_prefix(state_dict)
    # Bare networks from elsewhere have a classifier, which is not needed.
    parts = {name.split('.')[0] for name in backbone.state_dict()}
    weights = {
        key[len(prefix):]: value for key, value in state_dict.items()
        if key.startswith(prefix) and key[len(prefix):].split('.')[0] in parts}
    if not weights:
        raise ValueError(
            f'The file has no weights of a {describe(backbone)}: its keys are '
            f'such as {sorted(state_dict)[:3]}. Give a checkpoint of its '
            'training.')
    return weights


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


def with_dense_network(content: dict) -> Optional[dict]:
    """A checkpoint of two separate networks, with the dense one as backbone.

    The gates and norms of the gated mode stay; the dense mode has no use for
    them.

    Returns:
        dict, optional: None unless the run trained two separate networks
        (``DenseGatedSSL(separate=True)``).
    """
    start = 'dense_network.'
    own = {
        key.removeprefix(start): value
        for key, value in content['state_dict'].items()
        if key.startswith(start)}
    if not own:
        return None
    return dict(content, state_dict={**content['state_dict'], **own})


def backbone_prefix(state_dict: dict) -> str:
    """'backbone.' where the weights are an algorithm's, '' if a backbone's."""
    return 'backbone.' if any(
        key.startswith('backbone.') for key in state_dict) else ''
