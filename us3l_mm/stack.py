# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Whether the OpenMMLab stack is installed, and only once.

The maintained ``onedl-*`` distributions and the original ones install the same
import packages (``mmengine``, ``mmcv``, ``mmpretrain``). Installed together
they overwrite each other's files, which fails later in unrelated places.
"""
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Optional

# import name -> (maintained distribution, original distribution)
STACK = {
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv'),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'), }
DETECTION = "From a clone: pip install -e '.[detection]'"
INSTALL = 'pip install onedl-mmengine onedl-mmcv onedl-mmpretrain'
PURE_MMCV = ('pip install --no-cache-dir --no-deps --force-reinstall '
             'onedl-mmcv')


def is_installed(name: str) -> bool:
    """Whether a distribution called ``name`` is installed."""
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def problem() -> Optional[str]:
    """What is missing or mixed, and the line that mends it."""
    missing = [name for name in STACK if find_spec(name) is None]
    if missing:
        return (f'us3l_mm needs {", ".join(missing)}, which cannot be '
                f'imported. Install the stack with: {INSTALL}')
    mixed = [pair for pair in STACK.values() if all(map(is_installed, pair))]
    if mixed:
        pairs = '; '.join(f'{new} and {old}' for new, old in mixed)
        olds = ' '.join(old for _, old in mixed)
        return ('Two distributions of the same package are installed: '
                f'{pairs}. Keep one line of them, for instance: pip uninstall '
                f'-y {olds} {" ".join(n for n, _ in mixed)} && {INSTALL}')
    return None


def check_stack() -> None:
    """Raise ImportError, with what to install, on a missing or mixed stack."""
    found = problem()
    if found:
        raise ImportError(found)


def is_command() -> bool:
    """Whether this program is ``us3l`` or ``tools/doctor.py``.

    They check the stack themselves, as ``us3l doctor`` runs without it.
    """
    return Path(sys.argv[0]).stem in ('us3l', 'doctor')


def check_detection() -> None:
    """Raise ImportError, with what to install, for detectors."""
    if find_spec('mmdet') is None:
        raise ImportError(
            'This is a config of MMDetection (mmdet), which is not installed. '
            f'{DETECTION}')
    try:
        import_module('mmcv._ext')
    except ImportError as error:  # such as an undefined symbol
        raise ImportError(
            f'The compiled ops of mmcv do not load: {error}. They fit the '
            'PyTorch that they were compiled for. Without them, the ones of '
            f'torchvision are used: {PURE_MMCV}') from None
    try:
        import_module('mmdet')
    except AssertionError as error:  # its check of versions
        raise ImportError(f'MMDetection refuses to be imported: {error} '
                          f'{DETECTION}') from None
