# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Reading checkpoints without executing code, and finding damage in them."""
import os.path as osp
import pickle
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from typing import Any, Dict

import torch
from torch import Tensor

from .unpickling import SAFE_GLOBALS

# First bytes of a file of torch.save: a zip archive; before 1.6 a pickle.
ARCHIVE, OLD_FORMAT = b'PK\x03\x04', b'\x80'
# What the readers raise on a file that ends early or has wrong bytes.
DAMAGED = (ArithmeticError, AssertionError, AttributeError, EOFError,
           LookupError, MemoryError, OSError, RuntimeError, TypeError,
           ValueError, pickle.UnpicklingError, struct.error,
           zipfile.BadZipFile, zlib.error)
# How the restricted unpickler says that it would have to execute something.
NEEDS_CODE = re.compile(
    'global|reduce|create new object|build|looks up|persistent id', re.I)
# Weights and statistics of layers, which are real numbers.
REAL = re.compile(r'(^|\.)(weight|bias|running_(mean|var)\w*)$')
# Masks of attention and the ranges of observers may hold infinities.
MAY_BE_INFINITE = ('mask', 'min_val', 'max_val')
MAX_SHARING = 16  # tensors that may share the memory of one

_trusted = False


class CodeInFileError(ValueError):
    """A file that cannot be read without executing code in it."""


def trust_pickle(trust: bool = True) -> None:
    """Let this process read files even if that executes code in them.

    It is for programs in which MMEngine reads the files; elsewhere, trust a
    single file by :func:`load_weights`.

    Args:
        trust (bool): False takes the permission back. Defaults to True.
    """
    global _trusted
    _trusted = trust


def is_trusted() -> bool:
    """Whether :func:`trust_pickle` was called."""
    return _trusted


def load_weights(path: str, trust_pickle: bool = False) -> dict:
    """The checkpoint at ``path``, on the CPU, without executing its pickle.

    Tensors, numbers, texts, containers and the log history of MMEngine's
    checkpoints are read; a file with anything else is refused. So is a file
    whose checksums are wrong, or whose weights are integers, NaN or infinite.

    Args:
        path (str): A file of ``torch.save``.
        trust_pickle (bool): Whether to read the file even if that executes
            code in it. Defaults to False.

    Returns:
        dict: The checkpoint, with a ``state_dict`` of tensors, also if the
        file names it 'model' or is a state dict itself, and a dict ``meta``.

    Raises:
        FileNotFoundError: If there is no such file.
        CodeInFileError: If reading it would execute code.
        ValueError: If it is not a checkpoint, or is damaged.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(f'There is no checkpoint {path}.' +
                                osp.isdir(path) * ' It is a folder.')
    with open(path, 'rb') as file:
        head = file.read(4)
    if not head.startswith((ARCHIVE, OLD_FORMAT)):
        raise ValueError(f'{path} is not a PyTorch checkpoint: ' + (
            f'it begins with {head!r}.' if head else 'it is empty.'))
    try:
        if head == ARCHIVE:
            _check_archive(path)
        if trust_pickle or is_trusted():
            content = torch.load(path, map_location='cpu', weights_only=False)
        else:
            with torch.serialization.safe_globals(SAFE_GLOBALS):
                content = torch.load(path, map_location='cpu',
                                     weights_only=True)
        checkpoint = _with_state_dict(content)
        _check_weights(checkpoint['state_dict'], osp.getsize(path))
    except _NotACheckpointError as error:
        raise ValueError(f'{path} {error}') from None
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
    return checkpoint


class _NotACheckpointError(Exception):
    """The rest of a sentence about a file, from one of the checks below."""


def _check_archive(path: str) -> None:
    """Refuse an archive that is not as ``torch.save`` writes it.

    It neither compresses nor repeats parts. PyTorch would read such an
    archive, allocate what it declares, and not compare the checksums.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        names = [part.filename for part in parts]
        leaves = {name.partition('/')[2] for name in names}
        if 'constants.pkl' in leaves:
            raise _NotACheckpointError(
                'is a TorchScript archive, which is a program. Give a file of '
                'torch.save(model.state_dict(), FILE).')
        if 'data.pkl' not in leaves:
            raise _NotACheckpointError(
                f'is not a PyTorch checkpoint, but an archive of {names[:3]}.')
        if (len(leaves) < len(parts)
                or len({name.partition('/')[0] for name in names}) > 1
                or any(part.compress_type != zipfile.ZIP_STORED
                       for part in parts)
                or sum(part.file_size for part in parts) > osp.getsize(path)):
            raise _NotACheckpointError(
                'was not written by torch.save: its parts are compressed, '
                'overlap, have one name or lie in several folders.')
        wrong = archive.testzip()
    if wrong is not None:
        raise _NotACheckpointError(
            f'is damaged: the checksum of its part {wrong} is wrong. Copy or '
            'download it again, or take another checkpoint.')


def _with_state_dict(content: Any) -> dict:
    checkpoint = content if isinstance(content, dict) else {}
    for name in ('state_dict', 'model'):
        if isinstance(checkpoint.get(name), dict):
            given = checkpoint[name]
            break
    else:
        given, checkpoint = checkpoint, {}
    weights = OrderedDict((name, value) for name, value in given.items()
                          if isinstance(value, Tensor))
    if not weights:
        raise _NotACheckpointError(
            'holds no weights: a checkpoint is a dict of tensors by name, or '
            f'has one as state_dict; got a {type(content).__name__}' +
            (f' with {sorted(map(str, content))[:5]}.' if isinstance(
                content, dict) else '.'))
    versions = getattr(given, '_metadata', None)
    if isinstance(versions, dict):  # of layers, by which PyTorch adapts files
        weights._metadata = versions  # type: ignore[attr-defined]
    meta = checkpoint.get('meta')
    return {
        **checkpoint, 'state_dict': weights,
        'meta': meta if isinstance(meta, dict) else {}}


def _check_weights(weights: Dict[str, Tensor], file_size: int) -> None:
    """Refuse tensors that cannot be the weights of a trained network."""
    odd = [
        name for name, value in weights.items()
        if not isinstance(name, str) or value.layout is not torch.strided
        or value.device.type != 'cpu' or value.is_quantized]
    if odd:
        raise _NotACheckpointError(
            f'holds {odd[0]!r} as a {weights[odd[0]].layout} tensor on '
            f'{weights[odd[0]].device}. Only dense tensors of the CPU are '
            'read, by names that are texts.')
    size = sum(value.numel() * value.itemsize for value in weights.values())
    if size > MAX_SHARING * file_size:
        raise _NotACheckpointError(
            f'is not read: it has {file_size:,} bytes, and its tensors claim '
            f'to have {size:,}.')
    integers = [
        name for name, value in weights.items()
        if REAL.search(name) and not value.is_floating_point()]
    if integers:
        raise _NotACheckpointError(
            f'has {integers[0]} as {weights[integers[0]].dtype}, and '
            f'{len(integers) - 1} more tensors of this kind. Weights are real '
            'numbers: save the network without quantizing it.')
    broken = [
        name for name, value in weights.items() if is_broken(name, value)]
    if broken:
        value = weights[broken[0]]
        count = value.numel() - int(value.isfinite().sum())
        raise _NotACheckpointError(
            f'has weights that are not finite: {count:,} of the '
            f'{value.numel():,} values of {broken[0]} are NaN or infinite'
            f'{_and_more(len(broken) - 1)}. The training diverged, or the '
            'file is damaged: take an earlier checkpoint.')


def is_broken(name: str, value: Tensor) -> bool:
    """Whether a tensor has values that no weight may have."""
    if not value.is_floating_point() or not value.numel():
        return False
    if value.itemsize == 1:  # PyTorch has no reductions of float8
        value = value.half()
    lowest, highest = value.aminmax()  # NaN if there is one
    if name.endswith(MAY_BE_INFINITE):
        return bool(lowest.isnan())
    return not (lowest.isfinite() and highest.isfinite())


def _and_more(count: int) -> str:
    return f', and values of {count:,} more tensors' if count else ''


def _reason(error: BaseException) -> str:
    """PyTorch's message, without the advice around it."""
    text = str(error)
    for advice in ('WeightsUnpickler error:', 'a trusted source.'):
        if advice in text:
            text = text.split(advice)[-1]
            break
    lines = text.strip().splitlines() or [type(error).__name__]
    return lines[0].split(' Please use')[0]
