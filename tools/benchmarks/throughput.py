# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""How many images a training gets through, and where its time goes.

A training is run by each of some settings, with its Runner, data loader and
hooks, in one process and in turn: a round is some iterations of each. Figures
are medians over the rounds, ratios are medians of the ratios of a round to the
first setting. An image counts once, with all its views. Peak memory is that of
a process of its own.

With --against, training steps on batches that are there already are compared
with those of somebody else, see the choices:
  floor    bare passes of plain networks, of train_step.py
  plain    US3L as a plain script has it
  lightly  SimCLR or BYOL of the package lightly; ours is the base pass alone
"""
import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median
from tempfile import TemporaryDirectory

import torch
from against import compare, show_ratios
from arguments import add_recipe, add_shared, at_least, width_argument
from mmengine.device import get_device
from results import save
from rich.console import Console
from rich.progress import track
from rich.table import Table
from trial import (DATA, OPTIMIZER, REST, SETTINGS, TEACHER, VIEWS, Trial,
                   options_of, peak_memory)

from us3l_mm.apis.command_line import errors_as_sentences
from us3l_mm.evaluation.latency import device_name

DEFAULT = ['float32+channels-first', 'float32', 'amp+channels-first', 'amp']


def setting(text):
    """A type for argparse: words of ``SETTINGS``."""
    try:
        options_of(text)
    except KeyError as error:
        raise argparse.ArgumentTypeError(
            f'{error} is no setting; join with + any of {", ".join(SETTINGS)}'
        ) from None
    return text


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_recipe(parser)
    parser.add_argument(
        '--settings', nargs='+', type=setting, default=DEFAULT, metavar='NAME',
        help='names joined by +, of ' + ', '.join(SETTINGS) +
        f'\n(default: {" ".join(DEFAULT)})')
    parser.add_argument(
        '--synthetic', nargs='?', const=0, type=at_least(8),
        metavar='IMAGE_SIZE', help='images that are made for the purpose in '
        'place of the\ndata set, of this height and width in pixels (default: '
        '400\nin files, 32 in memory)')
    parser.add_argument('--batch-size', type=at_least(2),
                        help='images of a batch (default: that of the recipe)')
    parser.add_argument(
        '--widths', type=width_argument, nargs='+',
        help='widths of an iteration (default: those of the recipe, or\n1.0 '
        '0.625 0.25 where it draws them)')
    parser.add_argument(
        '--iterations', type=at_least(1), default=3,
        help='iterations of each setting in a round (default: 3)')
    parser.add_argument('--against', choices=['floor', 'plain', 'lightly'],
                        help='whose training steps to compare with')
    add_shared(parser, rounds=5)
    args = parser.parse_args(argv)
    kind, _, index = args.device.partition(':')
    if kind != get_device() or index not in ('', '0'):
        parser.error(
            f'--device {args.device}: a training runs on the first device '
            f'that is visible, {get_device()}. Set CUDA_VISIBLE_DEVICES to '
            'the number of a GPU, or to nothing for the CPU.')
    repeated = {s for s in args.settings if args.settings.count(s) > 1}
    if repeated:
        parser.error(f'--settings {" ".join(repeated)}: a setting is measured '
                     'once; name it once.')
    return args


def in_own_process(function, *arguments):
    """What ``function`` returns in a new process."""
    with ProcessPoolExecutor(1, get_context('spawn')) as pool:
        return pool.submit(function, *arguments).result()


def summarise(trial, first, memory):
    """The figures of a trial; ``first`` is the one that it is compared to."""

    def seconds(of):
        return [sum(sum(i.values()) for i in turn) / 1000 for turn in of]

    iterations = [i for turn in trial.rounds for i in turn]
    parts = {
        name: median(i.get(name, 0.0) for i in iterations)
        for name in dict.fromkeys(n for i in iterations for n in i)}
    images = len(trial.rounds[0]) * trial.batch_size
    own, others = seconds(trial.rounds), seconds(first.rounds)
    ratios = [b / a for a, b in zip(own, others)]
    figures = dict(
        setting=trial.setting, images_per_second=median(
            images / s for s in own), ratio=median(ratios), ratio_range=[
                min(ratios), max(ratios)], iteration_ms=median(
                    sum(i.values()) for i in iterations), waiting_share=median(
                        sum(i[DATA] for i in turn) / 1000 / s
                        for turn, s in zip(trial.rounds, own)), parts_ms=parts,
        peak_mib=memory)
    if 'compile' in options_of(trial.setting):
        figures.update(
            graphs=trial.graphs,
            compile_s=(trial.first_ms -
                       median(sum(i.values()) - i[DATA]
                              for i in iterations)) / 1000)
    return figures


def lines(setting):
    """The words of ``setting``, one in a line of a table."""
    return setting.replace('+', '\n+')


def show(rows, args):
    console = Console()
    table = Table(title=f'{os.path.basename(args.config)}, batch '
                  f'{rows[0]["batch_size"]}, {device_name(args.device)}')
    compiles = any('graphs' in row for row in rows)
    table.add_column('setting', no_wrap=True)
    for column in ('images/s', 'ratio', 'rounds', 'waits', 'peak MiB',
                   *(('compiles s', 'graphs') if compiles else ())):
        table.add_column(column, justify='right')
    for row in rows:
        low, high = row['ratio_range']
        compiled = ([f'{row["compile_s"]:.0f}',
                     str(row['graphs'])] if 'graphs' in row else [])
        table.add_row(lines(row['setting']), f'{row["images_per_second"]:.1f}',
                      f'{row["ratio"]:.3f}', f'{low:.2f}..{high:.2f}',
                      f'{100 * row["waiting_share"]:.1f} %',
                      f'{row["peak_mib"]:.0f}', *compiled)
    console.print(table)
    console.print('ratio: of images/s to those of the first setting; waits: '
                  'for data, of the time of an iteration')
    table = Table(title='parts of an iteration, ms')
    table.add_column('part')
    for row in rows:
        table.add_column(lines(row['setting']), justify='right')
    for part in order(rows):
        table.add_row(part, *(f'{row["parts_ms"][part]:.1f}' for row in rows))
    console.print(table)


def order(rows):
    """The names of the parts as they follow each other."""
    names = list(rows[0]['parts_ms'])
    passes = [name for name in names if name.startswith('pass ')]
    return [
        n for n in (DATA, VIEWS, TEACHER, *passes, OPTIMIZER, REST)
        if n in names]


def measure(args, folder):
    """The figures of each setting."""
    # First, as it finds mistakes in the config.
    trials = [Trial(args, name, folder) for name in args.settings]
    memory = {
        name: in_own_process(peak_memory, args, name, folder)
        for name in track(args.settings, 'measuring memory')}
    try:
        for trial in track(trials, 'warming up'):
            trial.warm_up()
        for _ in track(range(args.rounds), 'timing'):
            for trial in trials:
                trial.turn(args.iterations)
    finally:
        for trial in trials:
            trial.close()
    return [
        dict(summarise(trial, trials[0], memory[trial.setting]),
             batch_size=trial.batch_size) for trial in trials]


def benchmark(args):
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        if args.against:
            figures = compare(args, folder)
            show_ratios(figures, args)
            save(figures, args)
            return
        rows = measure(args, folder)
    show(rows, args)
    save(dict(settings_in_turn=rows), args)


def main(argv=None):
    args = parse_args(argv)
    with errors_as_sentences('throughput', args.debug):
        benchmark(args)


if __name__ == '__main__':
    main()
