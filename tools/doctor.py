# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Say what is installed, what is missing, and the line that mends it."""
import argparse
import os
import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.console import Console
from rich.table import Table

from us3l_mm import __version__
from us3l_mm.apis.command_line import errors_as_sentences
from us3l_mm.evaluation.latency import device_name
from us3l_mm.stack import STACK

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
    parser.add_argument('--debug', action='store_true',
                        help='show the whole traceback of an error')
    return parser.parse_args(argv)


def installed(*distributions):
    """Name and version of the first of ``distributions`` that is there."""
    for name in distributions:
        try:
            return f'{name} {version(name)}'
        except PackageNotFoundError:
            continue
    return None


def findings():
    """Rows of (what, what was found or None, how to mend it)."""
    yield 'us3l_mm', __version__, None
    yield 'Python', platform.python_version(), None
    for name in ('torch', 'torchvision'):
        yield name, installed(name), None
    for name, distributions in STACK.items():
        yield name, installed(*distributions), None
    yield 'ops of mmcv', ops(), None
    yield 'GPU', gpu(), None
    yield 'CPU', f'{os.cpu_count()} cores, {device_name("cpu")}', None
    yield 'bfloat16 on the CPU (--amp)', bfloat16(), None
    for module, (name, extra, purpose) in EXTRAS.items():
        yield (f'{module}, for {purpose}', installed(name)
               and works(module), f"pip install 'us3l_mm[{extra}]'")


def ops():
    """Whose ops detectors use."""
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


def bfloat16():
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return 'has instructions' if fast else 'has none: slow, use float32'


def works(module):
    """The version of ``module``, or the error of its import."""
    try:
        return getattr(import_module(module), '__version__', 'installed')
    except (AssertionError, ImportError, OSError) as error:
        return f'cannot be imported: {error}'


def main(argv=None):
    args = parse_args(argv)
    with errors_as_sentences('doctor', args.debug):
        report()


def report():
    """Print the findings, and what mends those that are missing."""
    table = Table(show_header=False)
    missing = {}
    for what, found, mend in findings():
        table.add_row(what, found or '[bold]missing')
        if mend and (found is None or found.startswith('cannot')):
            missing.setdefault(mend, []).append(what)
    console = Console()
    console.print(table)
    for mend, names in missing.items():
        console.print(f'{"; ".join(names)}:\n  {mend}', markup=False,
                      highlight=False)
    if not missing:
        console.print('Nothing is missing.')


if __name__ == '__main__':
    main()
