# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Say what is installed, what is missing, and the line that mends it."""
import argparse
import os
import platform
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

# Nothing that needs the OpenMMLab stack, which may be missing.
from us3l_mm import __version__, mmcv_ops
from us3l_mm.stack import INSTALL, STACK, problem

# What needs a package, and the extra that brings it.
EXTRAS = {
    'mmdet': ('onedl-mmdetection', 'detection', 'detectors'),
    'pycocotools': ('pycocotools', 'detection', 'COCO annotations'),
    'onnx': ('onnx', 'export', 'ONNX files'),
    'onnxruntime': ('onnxruntime', 'export', 'the check of ONNX files'),
    'timm': ('timm', 'export', 'weights for timm'),
    'tensorboard': ('tensorboard', 'tensorboard', 'TensorBoard'), }


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--debug', action='store_true',
        help='an error keeps its traceback, with this or without')
    return parser.parse_args(argv)


def installed(module, *distributions):
    """Name and version of the first of ``distributions`` that is there.

    None if ``module`` is missing, and the error if its import fails.
    """
    if find_spec(module) is None:
        return None
    try:
        import_module(module)
    except (AssertionError, ImportError, OSError) as error:
        return f'cannot be imported: {error}'
    for name in distributions:
        try:
            return f'{name} {version(name)}'
        except PackageNotFoundError:
            continue
    return 'of no version'


def findings():
    """Rows of (what, what was found or None, how to mend it)."""
    yield 'us3l_mm', __version__, None
    yield 'Python', platform.python_version(), None
    for name in ('torch', 'torchvision'):
        yield name, installed(name, name), None
    for name, distributions in STACK.items():
        yield name, installed(name, *distributions), INSTALL
    yield 'ops of mmcv', ops(), None
    yield 'GPU', gpu(), None
    yield 'CPU', cpu(), None
    yield 'bfloat16 on the CPU (--amp)', bfloat16(), None
    for module, (name, extra, purpose) in EXTRAS.items():
        yield (f'{module}, for {purpose}', installed(module, name),
               f"pip install 'us3l_mm[{extra}]'")


def ops():
    """Whose ops detectors use."""
    if find_spec('mmcv') is None:
        return None
    mmcv_ops.install()
    try:
        compiled = hasattr(import_module('mmcv._ext'), '__file__')
    except ImportError as error:
        return f'compiled, and cannot be loaded: {error}'
    return 'compiled' if compiled else 'those of torchvision'


def gpu():
    if not torch.cuda.is_available():
        return f'none that this torch can use (CUDA {torch.version.cuda})'
    return ', '.join(
        torch.cuda.get_device_name(i)
        for i in range(torch.cuda.device_count()))


def cpu():
    cores, (busy, *_) = os.cpu_count() or 1, os.getloadavg()
    said = f'{cores} cores, {busy:.1f} of them busy in the last minute'
    if busy < 0.5 or 'OMP_WAIT_POLICY' in os.environ:
        return said
    # OpenMP's threads wait for each other in a loop, also for one that
    # another process has taken the core from.
    return (f'{said}. Beside other programs, training is faster with the '
            'environment variable OMP_WAIT_POLICY=PASSIVE, and slower without '
            'them')


def bfloat16():
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return 'has instructions' if fast else 'has none: slow, use float32'


def main(argv=None):
    parse_args(argv)
    if not report():
        sys.exit(1)


def report():
    """Print the findings, and what mends those that are missing.

    Returns whether the OpenMMLab stack is there, and only once.
    """
    table = Table(show_header=False)
    console, missing = Console(), {}
    for what, found, mend in findings():
        table.add_row(what, escape(found) if found else '[bold]missing')
        if mend and (found is None or found.startswith('cannot')):
            missing.setdefault(mend, []).append(what)
    console.print(table)
    stack = problem()
    lines = [
        f'{"; ".join(names)}:\n  {mend}' for mend, names in missing.items()]
    if stack and INSTALL not in missing:  # two distributions of a package
        lines.insert(0, stack)
    for line in lines or ['Nothing is missing.']:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return stack is None and INSTALL not in missing


if __name__ == '__main__':
    main()
