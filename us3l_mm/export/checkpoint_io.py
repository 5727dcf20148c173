# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Reading weights without executing what is in the file; writing whole files.
"""
import hashlib
import io
import os
import os.path as osp
import pickle
import re
from typing import Any, Callable, Union

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from numpy._core import multiarray  # under this name since NumPy 1.26
from torch import Tensor

# First bytes of what torch.save writes: a zip archive, or before 1.6 a pickle.
MAGIC = (b'PK\x03\x04', b'\x80')
# What PyTorch's reader raises on a file that ends early or has wrong bytes.
DAMAGED = (AssertionError, AttributeError, EOFError, LookupError, OSError,
           OverflowError, RuntimeError, TypeError, ValueError,
           pickle.UnpicklingError)
# How its restricted unpickler says that it would have to execute something.
NEEDS_CODE = re.compile(
    'global|reduce|create new object|build|looks up|persistent id', re.I)


def _history_method(owner: type, name: str) -> Callable:
    """The one look-up by name that MMEngine's checkpoints make.

    MMEngine itself allows ``getattr``, with which a pickle reaches the
    builtins and replaces them by functions of its choice.
    """
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current',
                                                  'mean'):
        raise pickle.UnpicklingError(f'it looks up {name!r} of {owner!r}')
    return getattr(owner, name)


def _numpy_functions():
    """What rebuilds arrays, by the names that NumPy 1 and 2 write."""
    for name in ('_reconstruct', 'scalar'):
        for core in ('core', '_core'):
            yield (getattr(multiarray,
                           name), f'numpy.{core}.multiarray.{name}')


# What the log history in MMEngine's checkpoints is made of.
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
    },
]


def load_weights(path: str, trust_pickle: bool = False) -> dict:
    """The checkpoint at ``path``, on the CPU, without executing its pickle.

    Read are tensors, numbers, texts, containers, and the log history that
    MMEngine keeps in its checkpoints; all else is refused.

    Args:
        path (str): A file of ``torch.save``.
        trust_pickle (bool): Read the file even if that executes code in it.
            Defaults to False.

    Returns:
        dict: With a ``state_dict`` of tensors (also where the file calls it
        'model', or is one) and, as far as present, ``meta`` and the rest.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint, is damaged, or is refused.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(f'There is no checkpoint {path}.')
    with open(path, 'rb') as file:
        head = file.read(4)
    if not head.startswith(MAGIC):
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
            raise ValueError(
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
        name: value
        for name, value in weights.items() if isinstance(value, Tensor)
    }
    if not weights:
        raise ValueError(
            f'{path} holds no weights: a checkpoint is a dict of tensors by '
            f'name, or has one as state_dict; got a {type(content).__name__}' +
            (f' with {sorted(map(str, content))[:5]}.' if isinstance(
                content, dict) else '.'))
    return {**checkpoint, 'state_dict': weights}


def _reason(error: Exception) -> str:
    """What PyTorch says, without the advice around it."""
    text = str(error)
    for advice in ('WeightsUnpickler error:', 'a trusted source.'):
        if advice in text:
            text = text.split(advice)[-1]
            break
    lines = text.strip().splitlines() or [type(error).__name__]
    return lines[0].split(' Please use')[0]


def sha256(path: str) -> str:
    """Checksum of the file at ``path``, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def to_bytes(content: Any) -> bytes:
    """What ``torch.save`` writes for ``content``."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def save_atomically(content: Union[bytes, Any], path: str) -> None:
    """Write ``content`` to ``path``, as a whole or not at all.

    Args:
        content (bytes or Any): Bytes as they are; all else by ``torch.save``.
        path (str): Where to; its folder is created. A file that is there
            stays what it is until the new one lies on the disk.

    Raises:
        OSError: if it cannot be written; nothing is left behind then.
    """
    data = content if isinstance(content, bytes) else to_bytes(content)

    def write(temporary: str) -> None:
        with open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    try:
        write_atomically(path, write)
    except OSError as error:
        raise OSError(error.errno, f'{path} was not written: '
                      f'{error.strerror or error}') from error


def write_atomically(path: str, write: Callable[[str], None]) -> None:
    """Let ``write`` fill a temporary file, and only then call it ``path``.

    Args:
        path (str): The file to write; its folder is created.
        write (callable): Takes the name of the temporary file, which lies in
            the same folder and has the same extension.
    """
    _check_ordinary(path)
    folder = osp.dirname(osp.abspath(path))
    os.makedirs(folder, exist_ok=True)
    stem, extension = osp.splitext(osp.basename(path))
    temporary = osp.join(folder, f'.{stem}.{os.getpid()}{extension}')
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        if osp.exists(temporary):
            os.remove(temporary)
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """Make the names in ``folder`` survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_ordinary(path: str) -> None:
    """Refuse to replace a folder or a device, such as /dev/null."""
    if osp.exists(path) and not osp.isfile(path):
        raise FileExistsError(f'{path} is not an ordinary file: name a file '
                              'to write.')


def check_writable(path: str, source: str) -> None:
    """Refuse, before any long work, a target that cannot be written.

    Raises:
        OSError, ValueError: if ``path`` is a folder, lies under something
            that is none or that may not be written to, or is ``source``.
    """
    if osp.exists(path) and osp.samefile(path, source):
        raise ValueError(f'{path} is the checkpoint that is read: name '
                         'another file to write.')
    _check_ordinary(path)
    folder = osp.dirname(osp.abspath(path))
    while not osp.lexists(folder):
        folder = osp.dirname(folder)
    if not osp.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            f'{path} cannot be written: {folder} is not a folder that you may '
            'write to.')
