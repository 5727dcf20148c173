# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Files that are read safely, written as a whole, and found again."""
from .finding import find_checkpoint
from .fitting import Misfit, check_fit
from .reading import CodeInFileError, load_weights
from .writing import (WholeFileBackend, check_writable, remove_leftovers,
                      save_atomically, sha256, to_bytes, write_atomically)

__all__ = [
    'CodeInFileError', 'Misfit', 'WholeFileBackend', 'check_fit',
    'check_writable', 'find_checkpoint', 'load_weights', 'remove_leftovers',
    'save_atomically', 'sha256', 'to_bytes', 'write_atomically']
