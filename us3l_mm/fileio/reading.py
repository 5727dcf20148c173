# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Reading checkpoints without executing code that they may contain."""
import os.path as osp
import pickle
import re
from typing import Any, Callable

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from numpy._core import multiarray  # under this name since NumPy 1.26
from torch import Tensor

# First bytes of a file of torch.save: a zip archive; before 1.6 a pickle.
ARCHIVE, OLD_FORMAT = b'PK\x03\x04', b'\x80'
# What PyTorch's reader raises on a file that ends early or has wrong bytes.
DAMAGED = (AssertionError, AttributeError, EOFError, LookupError, OSError,
           OverflowError, RuntimeError, TypeError, ValueError,
           pickle.UnpicklingError)
# How its restricted unpickler says that it would have to execute something.
NEEDS_CODE = re.compile(
    'global|reduce|create new object|build|looks up|persistent id', re.I)


def _history_method(owner: type, name: str) -> Callable:
    """The only look-up by name in MMEngine's checkpoints.

    MMEngine allows ``getattr`` itself, with which a pickle could reach and
    replace the builtins.
    """
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current',
                                                  'mean'):
        raise pickle.UnpicklingError(f'it looks up {name!r} of {owner!r}')
    return getattr(owner, name)


def _numpy_functions():
    """The functions that rebuild arrays, by their names in NumPy 1 and 2."""
    for name in ('_reconstruct', 'scalar'):
        for core in ('core', '_core'):
            yield (getattr(multiarray,
                           name), f'numpy.{core}.multiarray.{name}')


# The types of the log history in MMEngine's checkpoints.
SAFE_GLOBALS = [
    HistoryBuffer,
    np.ndarray,
    np.dtype,
    slice,
    (_history_method, 'builtins.getattr'),
    *_numpy_functions(),
    *{
        type(np.dtype(name))
        for name in ('bool', 'int32', 'int64', 'uint32', 'float32', 'float64')
    }, ]


class CodeInFileError(ValueError):
    """A file that cannot be read without executing code in it."""


def first_bytes(path: str) -> bytes:
    """The first four bytes of the file at ``path``."""
    with open(path, 'rb') as file:
        return file.read(4)


def load_weights(path: str, trust_pickle: bool = False) -> dict:
    """The checkpoint at ``path``, on the CPU, without executing its pickle.

    Tensors, numbers, texts, containers and the log history of MMEngine's
    checkpoints are read; a file with anything else is refused.

    Args:
        path (str): A file of ``torch.save``.
        trust_pickle (bool): Whether to read the file even if that executes
            code in it. Defaults to False.

    Returns:
        dict: The checkpoint, with a ``state_dict`` of tensors, also if the
        file names it 'model' or is a state dict itself.

    Raises:
        FileNotFoundError: If there is no such file.
        CodeInFileError: If reading it would execute code.
        ValueError: If it is not a checkpoint, or is damaged.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(f'There is no checkpoint {path}.')
    head = first_bytes(path)
    if not head.startswith((ARCHIVE, OLD_FORMAT)):
        raise ValueError(f'{path} is not a PyTorch checkpoint: ' + (
            f'it begins with {head!r}.' if head else 'it is empty.'))
    try:
        if trust_pickle:
            content = torch.load(path, map_location='cpu', weights_only=False)
        else:
            with torch.serialization.safe_globals(SAFE_GLOBALS):
                content = torch.load(path, map_location='cpu',
                                     weights_only=True)
    except DAMAGED as error:
        reason = _reason(error)
        if isinstance(error,
                      pickle.UnpicklingError) and NEEDS_CODE.search(reason):
            raise CodeInFileError(
                f'{path} was not read: that would execute code of whoever '
                f'wrote it ({reason}). If you trust the file, pass '
                '--trust-pickle (trust_pickle=True).') from None
        raise ValueError(
            f'{path} is damaged or was not copied completely: it cannot be '
            f'read as a PyTorch checkpoint ({reason}).') from None
    return _with_state_dict(path, content)


def _with_state_dict(path: str, content: Any) -> dict:
    checkpoint = content if isinstance(content, dict) else {}
    for name in ('state_dict', 'model'):
        if isinstance(checkpoint.get(name), dict):
            weights = checkpoint[name]
            break
    else:
        weights, checkpoint = checkpoint, {}
    weights = {
        name: value for name, value in weights.items()
        if isinstance(value, Tensor)}
    if not weights:
        raise ValueError(
            f'{path} holds no weights: a checkpoint is a dict of tensors by '
            f'name, or has one as state_dict; got a {type(content).__name__}' +
            (f' with {sorted(map(str, content))[:5]}.' if isinstance(
                content, dict) else '.'))
    return {**checkpoint, 'state_dict': weights}


def _reason(error: Exception) -> str:
    """PyTorch's message, without the advice around it."""
    text = str(error)
    for advice in ('WeightsUnpickler error:', 'a trusted source.'):
        if advice in text:
            text = text.split(advice)[-1]
            break
    lines = text.strip().splitlines() or [type(error).__name__]
    return lines[0].split(' Please use')[0]
