# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Can this Python make an environment for us3l_mm? Needs nothing installed.

Old syntax on purpose: the answer must also reach somebody with Python 2 or
3.5, so no f-strings.
"""
import sys

SUPPORTED = ((3, 10), (3, 11), (3, 12))


def find_problem(version, has_module):
    """What is wrong with this Python and what to do, or None.

    Args:
        version (tuple): Like ``sys.version_info``.
        has_module (Callable): Whether a module of this name can be imported.
    """
    found = '.'.join(str(part) for part in version[:3])
    if tuple(version[:2]) not in SUPPORTED:
        return ('{} is Python {}; us3l_mm runs on Python 3.10, 3.11 and 3.12. '
                'Name one of these, for instance: make demo PYTHON=python3.11'.
                format(sys.executable, found))
    for module in ('venv', 'ensurepip'):
        if not has_module(module):
            return (
                '{} cannot make environments, its module "{}" is missing. '
                'Install it (Debian, Ubuntu: apt install python{}.{}-venv)'
                ' or name another Python: make demo PYTHON=python3.11'.format(
                    sys.executable, module, *version[:2]))
    return None


def can_import(module):
    """Whether ``module`` can be imported."""
    try:
        __import__(module)
    except ImportError:
        return False
    return True


if __name__ == '__main__':
    sys.exit(find_problem(sys.version_info, can_import))
