# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Writing checkpoints so that none is ever half there; finding them again."""
from .finding import find_checkpoint
from .writing import DISK_FULL, WholeFileBackend, free_space, remove_leftovers

__all__ = [
    'DISK_FULL', 'WholeFileBackend', 'find_checkpoint', 'free_space',
    'remove_leftovers'
]
