# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Whether the OpenMMLab stack is installed, and only once.

The maintained ``onedl-*`` distributions and the original ones install the same
import packages (``mmengine``, ``mmcv``, ``mmpretrain``). Installed together
they overwrite each other's files, which fails later in unrelated places.
"""
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

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


def check_stack() -> None:
    """Raise ImportError, with what to install, on a missing or mixed stack."""
    missing = [name for name in STACK if find_spec(name) is None]
    if missing:
        raise ImportError(
            f'us3l_mm needs {", ".join(missing)}, which cannot be imported. '
            f'Install the stack with: {INSTALL}')
    mixed = [pair for pair in STACK.values() if all(map(is_installed, pair))]
    if mixed:
        pairs = '; '.join(f'{new} and {old}' for new, old in mixed)
        olds = ' '.join(old for _, old in mixed)
        raise ImportError(
            f'Two distributions of the same package are installed: {pairs}. '
            'Keep one line of them, for instance: '
            f'pip uninstall -y {olds} {" ".join(n for n, _ in mixed)} && '
            f'{INSTALL}')


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
