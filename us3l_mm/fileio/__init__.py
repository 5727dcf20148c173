# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Files that are read safely, written as a whole, and found again."""
from .finding import find_checkpoint
from .fitting import Misfit, check_fit
from .reading import CodeInFileError, load_weights
from .writing import (DISK_FULL, WholeFileBackend, check_writable, free_space,
                      remove_leftovers, save_atomically, sha256, to_bytes,
                      write_atomically)

__all__ = [
    'DISK_FULL', 'CodeInFileError', 'Misfit', 'WholeFileBackend', 'check_fit',
    'check_writable', 'find_checkpoint', 'free_space', 'load_weights',
    'remove_leftovers', 'save_atomically', 'sha256', 'to_bytes',
    'write_atomically'
]
