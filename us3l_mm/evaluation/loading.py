# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Reading a checkpoint without running code, and the network that is in it."""
import os.path as osp
import pickle
from typing import Tuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.runner import set_random_seed
from mmengine.utils import import_modules_from_strings
from torch import nn

from us3l_mm.models.layers import slimmable_layers
from us3l_mm.registry import MODELS


def _history_method(owner: type, name: str):
    """The only attribute that MMEngine's checkpoints look up when read."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current',
                                                  'mean'):
        raise pickle.UnpicklingError(f'it looks up {owner!r}.{name}')
    return getattr(owner, name)


_NUMPY = np._core if hasattr(np, '_core') else np.core
# What the log history in MMEngine's checkpoints is made of, under the names
# that NumPy 1 and 2 write.
SAFE_GLOBALS = [
    HistoryBuffer, np.ndarray, np.dtype, slice,
    (_history_method, 'builtins.getattr'),
    *{type(np.dtype(name)) for name in
      ('bool', 'int32', 'int64', 'uint32', 'float32', 'float64')},
    *((getattr(_NUMPY.multiarray, name), f'numpy.{core}.multiarray.{name}')
      for core in ('core', '_core') for name in ('_reconstruct', 'scalar')),
]


def read_checkpoint(path: str) -> dict:
    """The checkpoint at ``path``, on the CPU, read without executing code.

    Tensors, numbers, texts, containers and MMEngine's log history are read;
    PyTorch's restricted unpickler refuses everything else.

    Returns:
        dict: With a ``state_dict``; what else there was, ``meta`` above all,
        is kept.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint, is cut short, or would have to
            execute code.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(
            f'There is no checkpoint {path}. Training writes them into its '
            'work_dir as epoch_N.pth.')
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            checkpoint = torch.load(path, map_location='cpu',
                                    weights_only=True)
    except pickle.UnpicklingError as error:
        with open(path, 'rb') as file:
            is_pickle = file.read(2) in (b'PK', b'\x80\x02', b'\x80\x04')
        if is_pickle:
            raise ValueError(
                f'{path} was not read: it holds more than weights and reading'
                ' it would execute code of whoever wrote it '
                f'({_reason(error)}). Write the file again with nothing but '
                'its state_dict.') from None
        raise _not_a_checkpoint(path, error) from None
    except (RuntimeError, EOFError, OSError, KeyError) as error:
        raise _not_a_checkpoint(path, error) from None
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} holds a {type(checkpoint).__name__}, not a '
                         'dict of weights.')
    if 'state_dict' not in checkpoint:
        checkpoint = dict(state_dict=checkpoint)
    return checkpoint


def load_network(config: Config, checkpoint: dict
                 ) -> Tuple[nn.Module, nn.Module]:
    """The backbone with the weights of ``checkpoint``, and its preprocessor.

    Args:
        config (Config): Of the pre-training; its ``model`` is built.
        checkpoint (dict): As :func:`read_checkpoint` returns it.

    Returns:
        tuple: Backbone and data preprocessor, on the CPU, in evaluation mode.

    Raises:
        ValueError: if the checkpoint is of another network.
    """
    algorithm = build_algorithm(config)
    weights = checkpoint['state_dict']
    prefix = backbone_prefix(weights)
    weights = {key[len(prefix):]: value for key, value in weights.items()
               if key.startswith(prefix)}
    try:
        algorithm.backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f'The checkpoint does not fit the config: {error}'
                         ) from None
    return algorithm.backbone.eval(), algorithm.data_preprocessor


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
    import_modules_from_strings(**config.get('custom_imports',
                                             dict(imports=['us3l_mm'])))
    with MODELS.switch_scope_and_registry(
            config.get('default_scope', 'mmpretrain')) as registry:
        algorithm = registry.build(config.model)
    backbone = getattr(algorithm, 'backbone', None)
    if backbone is None or not any(slimmable_layers(backbone)):
        raise ValueError(
            f'The model of {config.filename} has no slimmable backbone, got '
            f'{config.model.type} with {type(backbone).__name__}.')
    return algorithm


def backbone_prefix(state_dict: dict) -> str:
    """'backbone.' where the weights are an algorithm's, '' if a backbone's."""
    return 'backbone.' if any(key.startswith('backbone.')
                              for key in state_dict) else ''


def _not_a_checkpoint(path: str, error: Exception) -> ValueError:
    return ValueError(
        f'{path} is not a checkpoint, or is cut short ({_reason(error)}). Was '
        'it copied completely?')


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    for line in lines:
        if 'WeightsUnpickler error' in line:
            return line.split('WeightsUnpickler error:')[-1].strip()
    return lines[0]
