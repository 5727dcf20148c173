# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Where the files are that come with the package."""
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def shipped(folder: str) -> Path:
    """``configs`` or ``tools`` of this installation.

    A wheel has them where OpenMMLab's ``mim`` looks for them; a clone has them
    beside the package.
    """
    inside = PACKAGE / '.mim' / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder
