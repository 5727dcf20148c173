# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Test a trained detector, or a classifier at one width or at several."""
import argparse
import os
import os.path as osp
import sys
from pathlib import Path

import mmengine
import torch.distributed as torch_dist
from mmengine.config import Config, DictAction
from mmengine.evaluator import DumpResults
from mmengine.registry import RUNNERS
from mmengine.runner import CheckpointLoader, Runner
from rich.console import Console
# The tool beside this one; Python looks in the folder of a script first.
from train import (check_checkpoint, join_processes, load_config, merge_loader)

from us3l_mm.engine.launching import config as launch
from us3l_mm.models.heads import name_at
from us3l_mm.visualization import width_table


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description='Test a classifier or a detector that tools/train.py '
        'trained.',
        epilog='Example: python tools/test.py configs/us3l/benchmarks/'
        'linear-w050_resnet18_4xb128-steplr-100e_cifar10.py epoch_100.pth')
    parser.add_argument(
        'config', help='config file, such as one of '
        'configs/us3l/benchmarks/')
    parser.add_argument('checkpoint', help='file that the training wrote')
    parser.add_argument(
        '--work-dir', help='folder of logs and metrics; '
        'default: ./work_dirs/<name of the config>')
    parser.add_argument(
        '--out', metavar='FILE',
        help='also write predictions (.pkl), or metrics '
        '(.json, .yaml, .pkl); predictions of several widths '
        'become FILE with the width before its ending')
    parser.add_argument('--out-item', choices=['metrics', 'pred'],
                        help='what to write to --out; default: pred')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        metavar='KEY=VALUE', help='changes to the config')
    parser.add_argument('--amp', action='store_true',
                        help='predict in mixed precision')
    parser.add_argument('--show', action='store_true',
                        help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder to draw predictions into')
    parser.add_argument(
        '--interval', type=int, default=1,
        help='draw one of so many images (a detector draws '
        'all); default: 1')
    parser.add_argument('--wait-time', type=float, default=2,
                        help='seconds that --show shows each; default: 2')
    parser.add_argument('--no-pin-memory', action='store_true',
                        help='do not pin the memory of the data loader')
    parser.add_argument(
        '--launcher', default='none',
        choices=['none', 'pytorch', 'slurm',
                 'mpi'], help='what starts the processes of a distributed '
        'run; tools/dist_test.sh sets it')
    # Passed by launchers of the past; torchrun sets LOCAL_RANK instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help=argparse.SUPPRESS)
    parser.set_defaults(no_persistent_workers=False)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if args.out_item and not args.out:
        parser.error(f'--out-item {args.out_item} says what to write; --out '
                     'FILE says where.')
    return args


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Write the flags into the config."""
    if cfg.get('test_dataloader') is None or cfg.get('test_cfg') is None:
        sys.exit(f'{args.config} has no test_dataloader and test_cfg. '
                 'Pre-training has no labels to test against: '
                 'tools/evaluate_widths.py says what its widths are worth.')
    cfg.launcher, cfg.load_from = args.launcher, args.checkpoint
    cfg.resume = False
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('./work_dirs', Path(args.config).stem)
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir:
        cfg.default_hooks.visualization = drawing_hook(cfg, args)
    merge_loader(cfg.test_dataloader, args, launch.is_detection(cfg))
    launch.add_checks(cfg)
    return cfg


def drawing_hook(cfg: Config, args: argparse.Namespace) -> dict:
    """The hook that draws predictions, of the library of ``cfg``."""
    if not launch.is_detection(cfg):
        return dict(type='VisualizationHook', enable=True, show=args.show,
                    wait_time=args.wait_time, out_dir=args.show_dir,
                    interval=args.interval)
    # A relative folder would be put into the work dir, again at every image.
    folder = args.show_dir and osp.abspath(args.show_dir)
    return dict(type='DetVisualizationHook', draw=True, show=args.show,
                wait_time=args.wait_time, test_out_dir=folder)


def check_weights(runner: Runner, path: str) -> None:
    """Refuse a checkpoint that would leave some layers random.

    MMEngine would only log that it does.
    """
    weights = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    weights = weights.get('state_dict', weights)
    missing = [
        name for name, _ in runner.model.named_parameters()
        if name.removeprefix('module.') not in weights
    ]
    if missing:
        sys.exit(f'{path} lacks {len(missing)} of the parameters of this '
                 f'model, such as {missing[0]}. Test what tools/train.py '
                 'wrote for this config.')


def dump_predictions(runner: Runner, path: str) -> None:
    """Let the run write its predictions to ``path``, one file per width."""
    loop = runner.build_test_loop(runner._test_loop)
    runner._test_loop = loop
    if not hasattr(loop, 'evaluators'):
        loop.evaluator.metrics.append(DumpResults(path))
        return
    stem, ending = osp.splitext(path)
    for width, evaluator in loop.evaluators.items():
        evaluator.metrics.append(DumpResults(name_at(stem, width) + ending))


def main() -> None:
    args = parse_args()
    if '://' not in args.checkpoint and not osp.isfile(args.checkpoint):
        sys.exit(f'There is no checkpoint {args.checkpoint}.')
    cfg = merge_args(load_config(args.config, args.cfg_options or {}), args)
    check_checkpoint(cfg)
    try:
        launch.check_annotation_files(cfg, kinds=('test', ))
    except FileNotFoundError as error:
        sys.exit(str(error))
    join_processes(cfg)
    if 'runner_type' in cfg:
        runner = RUNNERS.build(cfg)
    else:
        runner = Runner.from_cfg(cfg)
    check_weights(runner, args.checkpoint)
    if args.out and args.out_item != 'metrics':
        dump_predictions(runner, args.out)
    metrics = runner.test()
    if hasattr(runner.test_loop, 'evaluators') and runner.rank == 0:
        Console().print(width_table(metrics,
                                    list(runner.test_loop.evaluators)))
    if args.out and args.out_item == 'metrics' and runner.rank == 0:
        mmengine.dump(metrics, args.out)
    if torch_dist.is_available() and torch_dist.is_initialized():
        torch_dist.destroy_process_group()


if __name__ == '__main__':
    main()
