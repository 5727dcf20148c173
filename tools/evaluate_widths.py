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
from mmengine.dist import init_dist, is_main_process
from rich.console import Console

from us3l_mm.apis.command_line import (OptionsAction, add_common_flags,
                                       errors_as_sentences, subnet_argument)
from us3l_mm.apis.labelled import has_labels, use_labelled
from us3l_mm.apis.launching.config import change_config, load_config
from us3l_mm.apis.launching.processes import join_on_cpus
from us3l_mm.evaluation import (Measures, Report, WidthEvaluation,
                                default_subnets)
from us3l_mm.evaluation.data import BANK, QUERY, TRAIN
from us3l_mm.evaluation.knn import METRICS
from us3l_mm.evaluation.loading import run_config
from us3l_mm.fileio import checkpoint_of, load_weights
from us3l_mm.models.layers import subnets_of
from us3l_mm.visualization import plot_measures

# The keys of a config that an evaluation reads.
READ = {
    'custom_imports', 'data_preprocessor', 'default_scope', 'model', BANK,
    QUERY, TRAIN}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        'config', nargs='?', help='config of the pre-training; default: the '
        'one that the\ncheckpoint holds, or that the run saved beside it')
    parser.add_argument(
        'checkpoint', help='file that the training wrote, or the folder of a '
        'run for its last one')
    parser.add_argument(
        '--labelled', metavar='DIR', help='folder with a folder of images for '
        'each class: one in five is\nclassified, by the others (default: the '
        'labelled images of the config)')
    widths = parser.add_mutually_exclusive_group()
    widths.add_argument('--widths', type=subnet_argument, nargs='+',
                        metavar='W',
                        help='for instance 0.25 0.5 0.75 1.0, or dense gated')
    widths.add_argument(
        '--num-widths', type=int, metavar='N',
        help='this number of widths, evenly from the lowest to the highest '
        '(default: 7)')
    parser.add_argument(
        '--budgets', type=float, nargs='+', default=[], metavar='B',
        help='also the gated network at other compute budgets, such as 0.3 '
        'and 0.5 of\nthe dense one: the threshold of its gates is calibrated '
        'for each')
    parser.add_argument(
        '--knn', action='store_true',
        help='accuracy of nearest neighbours (the default '
        'where nothing is asked for)')
    parser.add_argument('--linear', action='store_true',
                        help='accuracy of a linear classifier per width')
    parser.add_argument(
        '--linear-runs', type=int, metavar='N', help='--linear, and mean and '
        'deviation of this number of classifiers, each\non training images '
        'drawn with replacement')
    parser.add_argument(
        '--latency', action='store_true',
        help='milliseconds per image on this device, of the '
        'network sliced to the width,\nin the faster memory layout')
    parser.add_argument(
        '--baselines', action='store_true',
        help='kNN, also of raw pixels and of the untrained '
        'network')
    parser.add_argument('--k', type=int,
                        help='neighbours that vote (default: 20)')
    parser.add_argument('--metric', choices=METRICS,
                        help='of neighbours (default: cosine)')
    parser.add_argument(
        '--calibrate-on', choices=['plain', 'augmented'], default='plain',
        help='measure batch-norm statistics '
        'on the images of knn_bank_dataloader\nor on those of '
        'train_dataloader (default: plain)')
    parser.add_argument('--num-images', type=int, default=10000, metavar='N',
                        help='images to calibrate with (default: 10000)')
    parser.add_argument(
        '--running-average', type=float, metavar='M',
        help='average statistics over the batches with this momentum, '
        "such as\nthe reference's 0.1 (default: pool all images)")
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
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction,
                        metavar='KEY=VALUE', help='changes to the config')
    parser.add_argument('--launcher', default='none', choices=[
        'none', 'pytorch', 'slurm', 'mpi'],
                        help='who started several processes, if so')
    add_common_flags(parser)
    # Intermixed: an optional argument may stand between the two files.
    args = parser.parse_intermixed_args(argv)
    if args.linear_runs is not None:
        if args.linear_runs < 2:
            parser.error('--linear-runs is 2 or more, for a deviation, got '
                         f'{args.linear_runs}.')
        args.linear = True
    args.asked = args.knn or args.baselines or args.linear or args.latency
    args.knn |= args.baselines or not args.asked
    if args.k is not None and not args.knn:
        parser.error('--k is a number of neighbours, and there is no --knn.')
    if args.metric is not None and not args.knn:
        parser.error('--metric is that of neighbours, and there is no --knn.')
    return args


def start_processes(launcher, device):
    """Join the other processes of ``launcher``, if there are any."""
    if launcher == 'none':
        return
    if device == 'cpu':
        join_on_cpus(launcher)
    else:
        init_dist(launcher)


def config_of(args):
    """The config that is named, or else that of the run."""
    if args.config is not None:
        if not args.config.endswith(('.py', '.json', '.yaml', '.yml')):
            raise ValueError(f'{args.config} is not a config file. The config '
                             'comes first: evaluate_widths.py CONFIG CKPT')
        return load_config(args.config, args.cfg_options, READ)
    content = load_weights(args.checkpoint, args.trust_pickle)
    config = run_config(args.checkpoint, content)
    if config is None:
        raise ValueError(
            f'{args.checkpoint} does not hold the config of its training, and '
            'no single one lies beside it. Name it: evaluate_widths.py CONFIG '
            f'{args.checkpoint}')
    return change_config(config, config.filename, args.cfg_options, READ)


def choose_data(args, config, console):
    """Take the labelled images, or measure what needs none."""
    if args.labelled is not None:
        use_labelled(config, args.labelled)
    elif not args.asked and not has_labels(config):
        console.print('There are no labels, so size and latency are measured. '
                      'For accuracies, give --labelled FOLDER.')
        args.knn, args.latency = False, True


def subnets_to_measure(args, network):
    """The sub-networks that are named, or else some of ``network``."""
    if args.widths:
        return args.widths
    listed = subnets_of(network)
    if listed is not None and args.num_widths is not None:
        raise ValueError(
            f'--num-widths {args.num_widths} chooses from a range of widths; '
            f'this network has {", ".join(map(str, listed))}. For all of them '
            'leave the option out; for some, use --widths.')
    return default_subnets(network,
                           7 if args.num_widths is None else args.num_widths)


def evaluate(args, out, console):
    """The report of this checkpoint, and those to compare it with."""
    others = [Report.load(path) for path in args.compare]
    config = config_of(args)
    if args.config is None:
        console.print(f'Config: that of {config.filename}', soft_wrap=True)
    choose_data(args, config, console)
    evaluation = WidthEvaluation(
        config, args.checkpoint, out,
        Measures(knn=args.knn, linear=args.linear, latency=args.latency,
                 baselines=args.baselines, k=20 if args.k is None else args.k,
                 metric=args.metric or 'cosine', linear_runs=args.linear_runs
                 or 0, calibrate_on=args.calibrate_on,
                 num_images=args.num_images, momentum=args.running_average,
                 batch_size=args.batch_size, device=args.device),
        args.trust_pickle, console)
    evaluation.name = args.name or evaluation.name
    subnets = subnets_to_measure(args, evaluation.network)
    return [
        evaluation.run(subnets, args.save_checkpoint, args.budgets), *others]


def main(argv=None):
    args = parse_args(argv)
    with errors_as_sentences('evaluate_widths', args.debug):
        args.checkpoint = checkpoint_of(args.checkpoint)
        out = args.out or osp.splitext(args.checkpoint)[0] + '_widths'
        start_processes(args.launcher, args.device)
        console = Console(quiet=not is_main_process())
        try:
            reports = evaluate(args, out, console)
        except KeyboardInterrupt:
            sys.exit(f'Interrupted. What is finished is in {out}; the same '
                     'command goes on from there.')
        if is_main_process():
            console.print(reports[0].table())
            console.print('Written:', *reports[0].paths(out),
                          *plot_measures(out, reports), sep='\n  ',
                          soft_wrap=True)


if __name__ == '__main__':
    main()
