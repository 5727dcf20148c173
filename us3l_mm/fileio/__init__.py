# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Files that are read safely, written as a whole, and found again."""
from . import config_text  # noqa: F401 # keeps formatted configs
from . import schemes  # noqa: F401 # replaces MMEngine's readers
from .finding import check_resumable, checkpoint_of, find_checkpoint
from .fitting import Misfit, check_fit
from .reading import (CodeInFileError, is_trusted, load_weights, trust_pickle)
from .writing import (WholeFileBackend, check_writable, remove_leftovers,
                      save_atomically, sha256, to_bytes, write_atomically)

__all__ = [
    'CodeInFileError', 'Misfit', 'WholeFileBackend', 'check_fit',
    'check_resumable', 'check_writable', 'checkpoint_of', 'find_checkpoint',
    'is_trusted', 'load_weights', 'remove_leftovers', 'save_atomically',
    'sha256', 'to_bytes', 'trust_pickle', 'write_atomically']
