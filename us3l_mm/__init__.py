# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Pre-train a slimmable network once; measure and slice out any width.

>>> import us3l_mm
>>> checkpoint = us3l_mm.pretrain('photos', 'run')
>>> report = us3l_mm.evaluate('run', labelled='photos_by_class')
>>> us3l_mm.slice('run', 'half.pth', 0.5)
"""
from typing import Any

from . import mmcv_ops
from .stack import check_stack, is_command, problem
from .version import __version__

if not is_command() or problem() is None:
    check_stack()
    mmcv_ops.install()

    # From here on, MMEngine reads files without executing them.
    from . import fileio

__all__ = ['__version__', 'evaluate', 'fileio', 'pretrain', 'slice']


def __getattr__(name: str) -> Any:
    """The functions of the command ``us3l``, which import the whole stack."""
    if name not in ('evaluate', 'pretrain', 'slice'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from us3l_mm.apis import runs
    return getattr(runs, name)
