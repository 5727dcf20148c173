# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Put an mmcv with compiled ops into the environment of this Python.

Nothing happens if it is there. Otherwise a ready-made wheel is taken from the
wheel folder or from where pip's ``find-links`` points, else the ops are
compiled once and the wheel is kept in the wheel folder. That is done by hand,
because pip's cache does not tell an mmcv with ops from one without: a plain
``pip install`` may silently give either.
"""
import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import List, Optional

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / 'requirements' / 'constraints.txt'
PIP = [sys.executable, '-m', 'pip', '--no-input']
# Importing mmcv.ops is not enough: a wheel built against another torch may
# import and then fail in the call.
CHECK = """
import torch
from mmcv.ops import nms
boxes = torch.tensor([[0., 0., 4., 4.], [0., 0., 4., 5.], [8., 8., 9., 9.]])
kept = nms(boxes, torch.tensor([.9, .8, .7]), iou_threshold=.5)[1]
assert kept.tolist() == [0, 2], kept
"""


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--wheels', type=Path, default=ROOT / '.wheels',
        help='folder in which compiled wheels are kept (default: .wheels)')
    parser.add_argument(
        '--jobs', type=int, default=os.environ.get('MAX_JOBS')
        or os.cpu_count(),
        help='compilers at a time (default: MAX_JOBS or the number of cores)')
    return parser.parse_args()


def why_ops_fail() -> Optional[str]:
    """The error of the installed mmcv's ops, None if they work."""
    done = subprocess.run([sys.executable, '-c', CHECK], cwd=ROOT,
                          capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return (done.stderr.strip()
            or f'exit status {done.returncode}').splitlines()[-1]


def install_from(*find_links: str) -> bool:
    """Install a ready-made wheel; whether there was one and its ops work.

    The package index is not asked: it has mmcv's sources only.
    """
    done = subprocess.run([
        *PIP, 'install', '--no-index', '--no-deps', '--no-cache-dir',
        '--force-reinstall', '--only-binary', ':all:', '--constraint',
        str(CONSTRAINTS), *find_links, 'onedl-mmcv'], capture_output=True)
    return done.returncode == 0 and why_ops_fail() is None


def find_build_problem() -> Optional[str]:
    """What a compilation would lack, with the way out, or None."""
    compiler = os.environ.get('CXX', 'c++').split()[0]
    if shutil.which(compiler) is None:
        return (f'no C++ compiler ({compiler}) to build the ops of mmcv with. '
                'Install one (Debian, Ubuntu: apt install g++) or give a '
                'folder with a compiled wheel: make test WHEELS=FOLDER')
    header = Path(sysconfig.get_path('include'), 'Python.h')
    if not header.exists():
        return (f'{header} is missing, the ops of mmcv cannot be built. '
                'Install the headers of this Python (Debian, Ubuntu: apt '
                f'install python{sys.version_info[0]}.{sys.version_info[1]}'
                '-dev) or give a folder with a compiled wheel: make test '
                'WHEELS=FOLDER')
    return None


def build_environment(jobs: int) -> dict:
    """The variables of the compilation."""
    env = dict(os.environ, MAX_JOBS=str(jobs))
    # mmcv calls ninja by name, which pip has put beside this Python.
    env['PATH'] = os.pathsep.join([
        str(Path(sys.executable).parent),
        env.get('PATH', '')])
    if env.get('FORCE_CUDA', '0') != '1':
        # A visible GPU makes mmcv compile for CUDA, which takes far longer
        # and needs the CUDA compiler of torch's own version.
        env['CUDA_VISIBLE_DEVICES'] = ''
    return env


def follow(command: List[str], env: dict, log: Path) -> int:
    """Run ``command``; print ninja's counter, put the rest into ``log``."""
    start, told = time.time(), 0.0
    with log.open('w') as out, subprocess.Popen(
            command, env=env, text=True, errors='replace',
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            out.write(line)
            step = re.match(r'\s*\[(\d+)/(\d+)\]', line)
            if step and (time.time() - told > 15 or step[1] == step[2]):
                told = time.time()
                print(
                    f'  {step[1]} of {step[2]} files compiled, '
                    f'{(told - start) / 60:.1f} minutes', flush=True)
    return process.returncode


def build_wheel(folder: Path, jobs: int) -> None:
    """Compile the ops of mmcv into a wheel in ``folder``."""
    problem = find_build_problem()
    if problem:
        sys.exit(problem)
    ops = 'CPU and CUDA' if os.environ.get('FORCE_CUDA') == '1' else 'CPU'
    print(
        f'Compiling the {ops} ops of mmcv, once: about 20 minutes divided '
        f'by the number of cores ({jobs} used; MAX_JOBS changes it).',
        flush=True)
    subprocess.run([
        *PIP, 'install', '--quiet', '--constraint',
        str(CONSTRAINTS), 'ninja', 'packaging', 'psutil', 'setuptools', 'wheel'
    ], check=True)
    log = folder / 'build.log'
    code = follow([
        *PIP, 'wheel', '--verbose', '--no-cache-dir', '--no-build-isolation',
        '--no-deps', '--no-binary', 'onedl-mmcv', '--constraint',
        str(CONSTRAINTS), '--wheel-dir',
        str(folder), 'onedl-mmcv'], build_environment(jobs), log)
    if code:
        tail = '\n'.join(log.read_text().splitlines()[-30:])
        sys.exit(f'{tail}\nThe ops of mmcv did not compile; all of the '
                 f'output is in {log}. Too little memory is a frequent cause '
                 '(1 to 2 GB a job): make test MAX_JOBS=1')


def main():
    args = parse_args()
    if why_ops_fail() is None:
        print('The installed mmcv has working compiled ops.')
        return
    from torch import __version__ as torch_version

    # Compiled ops fit one torch and one kind of machine.
    folder = args.wheels / f'torch-{torch_version}-{platform.machine()}'
    folder.mkdir(parents=True, exist_ok=True)
    # --isolated keeps a wheel of find-links from being taken for ours.
    ours = ('--isolated', '--find-links', str(folder))
    if install_from(*ours):
        print(f'Installed the mmcv with compiled ops of {folder}')
    elif install_from():
        print('Installed a ready-made mmcv with compiled ops of find-links.')
    else:
        build_wheel(folder, args.jobs)
        if not install_from(*ours):
            sys.exit(f'The ops of mmcv were compiled but do not work: '
                     f'{why_ops_fail()}. Remove {folder} and the environment '
                     'and try again.')


if __name__ == '__main__':
    main()
