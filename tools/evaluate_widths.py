# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Evaluate the sub-networks of a checkpoint.

Calibrates the batch norms of each of them, extracts features of all in one
pass over the data, and reports accuracy, parameters and GMACs as a table,
JSON, CSV and a plot. After an interruption, the same command continues.
"""
import argparse
import os.path as osp
import sys

import torch
from mmengine.config import Config, DictAction
from mmengine.dist import init_dist, is_main_process
from rich.console import Console

from us3l_mm.apis.command_line import subnet_argument
from us3l_mm.apis.launching.processes import join_on_cpus
from us3l_mm.evaluation import (Measures, Report, WidthEvaluation,
                                default_subnets)
from us3l_mm.visualization import plot_measures


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('config', help='config of the pre-training')
    parser.add_argument('checkpoint', help='file that the training wrote')
    widths = parser.add_mutually_exclusive_group()
    widths.add_argument('--widths', type=subnet_argument, nargs='+',
                        metavar='W',
                        help='for instance 0.25 0.5 0.75 1.0, or dense gated')
    widths.add_argument(
        '--num-widths', type=int, default=7, metavar='N',
        help='this number of widths, evenly from the lowest to the highest '
        '(default: 7)')
    parser.add_argument(
        '--knn', action='store_true',
        help='accuracy of nearest neighbours (the default '
        'where nothing is asked for)')
    parser.add_argument('--linear', action='store_true',
                        help='accuracy of a linear classifier per width')
    parser.add_argument(
        '--latency', action='store_true',
        help='milliseconds per image on this device, of the '
        'network sliced to the width')
    parser.add_argument(
        '--baselines', action='store_true',
        help='kNN, also of raw pixels and of the untrained '
        'network')
    parser.add_argument('--k', type=int, default=20,
                        help='neighbours that vote (default: 20)')
    parser.add_argument(
        '--calibrate-on', choices=['plain', 'augmented'], default='plain',
        help='measure batch-norm statistics '
        'on the images of knn_bank_dataloader\nor on those of '
        'train_dataloader (default: plain)')
    parser.add_argument('--num-images', type=int, default=10000, metavar='N',
                        help='images to calibrate with (default: 10000)')
    parser.add_argument(
        '--save-checkpoint', metavar='FILE',
        help='also write the checkpoint with the measured '
        'statistics in it')
    parser.add_argument(
        '--compare', nargs='+', default=[], metavar='JSON',
        help='reports of other checkpoints, to be drawn into '
        'the same plot;\nthose with one --name are one line')
    parser.add_argument(
        '--name', help='of this run in table and plot '
        '(default: the name of the config)')
    parser.add_argument(
        '--out', metavar='DIR',
        help='default: the name of the checkpoint, without '
        '.pth, with _widths behind it')
    parser.add_argument('--batch-size', type=int, metavar='N',
                        help='instead of those in the config')
    parser.add_argument('--device',
                        default='cuda' if torch.cuda.is_available() else 'cpu',
                        help='default: cuda where there is one, else cpu')
    parser.add_argument(
        '--trust-pickle', action='store_true',
        help='read the checkpoint even if that executes code '
        'in it')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        metavar='KEY=VALUE', help='changes to the config')
    parser.add_argument('--launcher', default='none', choices=[
        'none', 'pytorch', 'slurm', 'mpi'],
                        help='who started several processes, if so')
    return parser.parse_args(argv)


def start_processes(launcher, device):
    """Join the other processes of ``launcher``, if there are any."""
    if launcher == 'none':
        return
    if device != 'cpu':
        init_dist(launcher)
        return
    try:
        join_on_cpus(launcher)
    except ValueError as error:
        sys.exit(str(error))


def evaluate(args, out, console):
    """The report of this checkpoint, and those to compare it with."""
    others = [Report.load(path) for path in args.compare]
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options or {})
    evaluation = WidthEvaluation(
        config, args.checkpoint, out,
        Measures(
            knn=args.knn or args.baselines
            or not (args.linear or args.latency), linear=args.linear,
            latency=args.latency, baselines=args.baselines, k=args.k,
            calibrate_on=args.calibrate_on, num_images=args.num_images,
            batch_size=args.batch_size, device=args.device), args.trust_pickle,
        console)
    evaluation.name = args.name or evaluation.name
    subnets = args.widths or default_subnets(evaluation.network,
                                             args.num_widths)
    return [evaluation.run(subnets, args.save_checkpoint), *others]


def main(argv=None):
    args = parse_args(argv)
    start_processes(args.launcher, args.device)
    console = Console(quiet=not is_main_process())
    out = args.out or osp.splitext(args.checkpoint)[0] + '_widths'
    try:
        reports = evaluate(args, out, console)
        if is_main_process():
            console.print(reports[0].table())
            console.print('Written:', *reports[0].paths(out),
                          *plot_measures(out, reports), sep='\n  ',
                          soft_wrap=True)
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f'evaluate_widths: {error}')
    except KeyboardInterrupt:
        sys.exit(f'Interrupted. What is finished is in {out}; the same '
                 'command goes on from there.')


if __name__ == '__main__':
    main()
