# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Types of NumPy and MMEngine in checkpoints, rebuilt from plain data.

PyTorch's restricted unpickler calls whatever is on its list of allowed types
with arguments from the file. Some types cannot bear that: with ``getattr``,
which MMEngine allows, a file reaches the builtins; the state of a
``numpy.dtype`` can declare numbers to be pointers; and the state of a
``HistoryBuffer`` replaces functions for the whole process. The classes here
take their places in the list.
"""
import pickle
import re
from typing import Callable

import numpy as np
from mmengine.logging import HistoryBuffer

STATISTICS = ('min', 'max', 'current', 'mean')


class _DType:
    """``numpy.dtype`` of numbers; of the state only the byte order counts."""

    def __init__(self, name: str, align: bool = False, copy: bool = False):
        if not re.fullmatch(r'[biufc]\d+', str(name)):
            raise pickle.UnpicklingError(f'it builds an array of {name!r}')
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        if state[1] == '>':
            self.dtype = self.dtype.newbyteorder('>')


class _Array(np.ndarray):
    """``numpy.ndarray`` from the bytes of numbers; saved as an ordinary one.
    """

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, is_fortran, content = state
        if not isinstance(kind, _DType) or not isinstance(content, bytes):
            raise pickle.UnpicklingError(f'it builds an array of {kind!r}')
        array = np.frombuffer(content, kind.dtype).reshape(
            shape, order='F' if is_fortran else 'C')
        super().__setstate__(array.__reduce__()[2])

    def __reduce__(self):
        return self.view(np.ndarray).__reduce__()


class _History(HistoryBuffer):
    """``HistoryBuffer`` without the functions that its state may bring."""

    def __setstate__(self, state: dict) -> None:
        history, count = (np.array(state[f'_{name}_history'], dtype=float)
                          for name in ('log', 'count'))
        super().__setstate__(
            dict(max_length=int(state['max_length']), _log_history=history,
                 _count_history=count))
        self.__class__ = HistoryBuffer


def _reconstruct(owner: type, shape: tuple, kind: bytes) -> np.ndarray:
    return np.ndarray.__new__(_Array, (0, ))


def _no_bytes() -> bytes:
    """The content of an empty array; ``bytes(n)`` would allocate memory."""
    return b''


def _scalar(kind: _DType, content: bytes) -> np.generic:
    return np.frombuffer(content, kind.dtype)[0]


def _history_method(owner: type, name: str) -> Callable:
    """The only look-up by name in MMEngine's checkpoints."""
    if owner is not _History or name not in STATISTICS:
        raise pickle.UnpicklingError(f'it looks up {name!r} by getattr')
    return getattr(HistoryBuffer, name)


# Objects, and the names that they have in a file.
SAFE_GLOBALS = [
    (_History, 'mmengine.logging.history_buffer.HistoryBuffer'),
    (_history_method, 'builtins.getattr'),
    (_no_bytes, 'builtins.bytes'),
    (_Array, 'numpy.ndarray'),
    (_DType, 'numpy.dtype'),
    *(
        (function, f'numpy.{core}.multiarray.{name}')  # of NumPy 1 and 2
        for function, name in ((_reconstruct, '_reconstruct'),
                               (_scalar, 'scalar'))
        for core in ('core', '_core')), ]
