# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Pre-train a slimmable network once; measure and slice out any width."""
from . import mmcv_ops
from .stack import check_stack
from .version import __version__

check_stack()
mmcv_ops.install()

# From here on, MMEngine reads files without executing them.
from . import fileio  # noqa: E402

__all__ = ['__version__', 'fileio']
