# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Test a trained detector, or a classifier at one width or at several."""
import argparse
import os
import os.path as osp

import mmengine
from mmengine.config import Config
from mmengine.runner import Runner
from rich.console import Console

from us3l_mm.apis import launching
from us3l_mm.apis.command_line import (OptionsAction, add_common_flags,
                                       errors_as_sentences)
from us3l_mm.fileio import trust_pickle
from us3l_mm.visualization import width_table


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description='Test a classifier or a detector that tools/train.py '
        'trained.',
        epilog='Example: python tools/test.py configs/us3l/benchmarks/'
        'linear_resnet18_4xb128-steplr-100e_cifar10.py epoch_100.pth')
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
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction,
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
        '--launcher', default='none', choices=[
            'none', 'pytorch', 'slurm', 'mpi'],
        help='what starts the processes of a distributed '
        'run; tools/dist_test.sh sets it')
    add_common_flags(parser)
    # Passed by launchers of the past; torchrun sets LOCAL_RANK instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if args.out_item and not args.out:
        parser.error(f'--out-item {args.out_item} says what to write; --out '
                     'FILE says where.')
    if args.interval < 1 or not args.wait_time >= 0:
        parser.error('--interval is at least 1 and --wait-time at least 0, '
                     f'got --interval {args.interval} and --wait-time '
                     f'{args.wait_time:g}.')
    endings = ('.pkl', '.json',
               '.yaml')[:None if args.out_item == 'metrics' else 1]
    if args.out and not args.out.endswith(endings):
        parser.error(f'--out {args.out} has to end in {" or ".join(endings)}.')
    folder = osp.dirname(args.out or '') or '.'
    if not osp.isdir(folder):
        parser.error(f'--out {args.out}: there is no folder {folder}.')
    return args


def config_of(args: argparse.Namespace) -> Config:
    """The config to test by: the file, the options and the flags."""
    if '://' not in args.checkpoint and not osp.isfile(args.checkpoint):
        raise FileNotFoundError(f'There is no checkpoint {args.checkpoint}.')
    cfg = launching.load_config(args.config, args.cfg_options)
    if cfg.get('test_dataloader') is None or cfg.get('test_cfg') is None:
        raise ValueError(
            f'{args.config} has no test_dataloader and test_cfg. Pre-training '
            'has no labels to test against: tools/evaluate_widths.py says '
            'what its widths are worth.')
    cfg.launcher, cfg.load_from = args.launcher, args.checkpoint
    cfg.resume = False
    launching.set_work_dir(cfg, args.work_dir, args.config)
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir:
        cfg.default_hooks.visualization = drawing_hook(cfg, args)
    launching.set_up_loader(cfg, 'test', not args.no_pin_memory)
    launching.add_checks(cfg)
    launching.drop_disabled_hooks(cfg)
    return cfg


def drawing_hook(cfg: Config, args: argparse.Namespace) -> dict:
    """The hook that draws predictions, of the library of ``cfg``."""
    if not launching.is_detection(cfg):
        return dict(type='VisualizationHook', enable=True, show=args.show,
                    wait_time=args.wait_time, out_dir=args.show_dir,
                    interval=args.interval)
    # A relative folder would be put into the work dir, again at every image.
    folder = args.show_dir and osp.abspath(args.show_dir)
    return dict(type='DetVisualizationHook', draw=True, show=args.show,
                wait_time=args.wait_time, test_out_dir=folder)


def main(argv=None) -> None:
    args = parse_args(argv)
    trust_pickle(args.trust_pickle)
    with errors_as_sentences('test.py', args.debug):
        cfg = config_of(args)
        launching.check_config(cfg, ('test', ))
        launching.check_checkpoint(cfg)
        launching.check_annotation_files(cfg, stages=('test', ))
    with launching.nothing_left_behind(cfg) as begun, errors_as_sentences(
            'test.py', args.debug, lambda: begun.begun):
        launching.join_processes(cfg)
        runner = launching.build_runner(cfg)
        runner.register_hook(begun)
        launching.check_all_loaded(runner, args.checkpoint)
        test(runner, args)
    launching.leave_processes()


def test(runner: Runner, args: argparse.Namespace) -> None:
    """Test, print a table of several widths, and write what is asked for."""
    if args.out and args.out_item != 'metrics':
        launching.dump_predictions(runner, args.out)
    metrics = runner.test()
    if hasattr(runner.test_loop, 'evaluators') and runner.rank == 0:
        Console().print(width_table(metrics,
                                    list(runner.test_loop.evaluators)))
    if args.out and args.out_item == 'metrics' and runner.rank == 0:
        mmengine.dump(metrics, args.out)


if __name__ == '__main__':
    main()
