# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What a training iteration costs beyond its forward and backward passes.

The floor is the bare passes: a plain network of each width that the iteration
trains, forward and backward over its views with the loss of the head, and a
plain full network forward for the teacher. Both sides are timed in turn, round
by round, in one process; figures are medians over the rounds, and ratios are
medians of the ratios of a round, so that a machine whose speed drifts does not
move them.
"""
import argparse
import os
from statistics import median

import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from rich.console import Console
from rich.progress import track
from rich.table import Table

from arguments import (READ, add_recipe, add_shared, at_least, width_argument)
from floor import bare_passes
from plain_us3l import float64_mask_loss, named_parameters
from results import save
from stopwatch import Stopwatch
from us3l_mm.apis.command_line import errors_as_sentences
from us3l_mm.apis.launching import load_config
from us3l_mm.engine import MultiPassOptimWrapper
from us3l_mm.models import GroupDecay, Plan, at
from us3l_mm.models.selfsup import Batch
from us3l_mm.registry import MODELS


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_recipe(parser)
    parser.add_argument('--image-size', type=at_least(1), default=32,
                        help='height and width in pixels (default: 32)')
    parser.add_argument('--batch-size', type=at_least(2), default=64,
                        help='images per view (default: 64)')
    parser.add_argument(
        '--widths', type=width_argument, nargs='+', default=[1.0, 0.625, 0.25],
        help='widths of the iteration; multiples of 1/8 are '
        'plain networks exactly (default: 1.0 0.625 0.25)')
    add_shared(parser, rounds=7)
    return parser.parse_args(argv)


def build_algorithm(args):
    """The algorithm, its optimizer wrapper, and which dimensions it groups.

    These are None where the config has no group regularisation.
    """
    config = load_config(args.config, args.cfg_options, READ)
    algorithm = MODELS.build(config.model)
    algorithm.init_weights()
    algorithm.to(args.device).train()
    algorithm.views = lambda data: data['views']  # made on the device
    wrapper = MultiPassOptimWrapper(optimizer=torch.optim.SGD(
        [p for p in algorithm.parameters()
         if p.requires_grad], lr=1e-3, momentum=0.9))
    hook = config.get('default_hooks', {}).get('group_reg')
    group_dims = hook and dict(hook.get('group_dims') or {1: 0, 4: 0})
    return algorithm, wrapper, group_dims


def time_round(watch, algorithm, wrapper, bare, views, plan, decay,
               group_dims):
    """Time one iteration, its floor, and its parts."""
    watch('iteration',
          lambda: algorithm.train_step(dict(views=views, plan=plan), wrapper))
    wrapper.regulariser = None
    with torch.no_grad():
        targets = watch('bare teacher', lambda: bare[0].targets(views))
    for pass_, bare_pass in zip(plan.passes, bare):
        watch(f'bare {pass_.name}', lambda: bare_pass(views, targets))
    batch = Batch(views, plan)
    watch('teacher', lambda: algorithm.begin(batch))
    wrapper.begin_batch(plan, algorithm.update_mode)
    for pass_ in plan.passes:

        def one_pass():
            with at(algorithm, pass_.subnet):
                output = algorithm(batch, mode='loss', pass_=pass_)
                sum(output['losses'].values()).backward()
                batch.carried.update(output.get('carried', {}))

        watch(pass_.name, one_pass)
        watch(f'optimizer {pass_.name}', wrapper.step)
        if decay is None:
            wrapper.zero_grad()
            continue

        def regularise():
            if pass_.role == 'base':  # once an iteration, for the log
                decay.value([each.role for each in plan.passes])
            decay.add_gradients({pass_.role: 1}, 1.0)

        # Gradients exist, as they do when a step adds to them.
        watch(f'regulariser {pass_.name}', regularise)
        watch(
            f'mask {pass_.name}',
            lambda: float64_mask_loss(named_parameters(algorithm), decay.lam,
                                      decay.alpha, group_dims).backward())
        wrapper.zero_grad()
    if decay is not None:
        wrapper.regularise(decay)


def summarise(watch, names):
    """Medians in milliseconds and ratios, by name."""

    def each(prefix):
        return [f'{prefix} {name}' for name in names]

    def ratio(over, under):
        return median(a / b for a, b in zip(over, under))

    iteration = watch.ms('iteration')
    floor = watch.ms('bare teacher', *each('bare'))
    rows = [('iteration', iteration, floor),
            ('teacher', watch.ms('teacher'), watch.ms('bare teacher'))]
    rows += [(f'pass {name}', watch.ms(name), watch.ms(f'bare {name}'))
             for name in names]
    rows += [('optimizer steps', watch.ms(*each('optimizer')), None)]
    figures = dict(beyond_the_passes=median(1 - b / a
                                            for a, b in zip(iteration, floor)))
    if each('mask')[0] in watch.times:
        reg, mask = watch.ms(*each('regulariser')), watch.ms(*each('mask'))
        rows += [('group regularisation', reg, mask)]
        figures.update(regularisation_share=ratio(reg, iteration),
                       mask_over_regularisation=ratio(mask, reg))
    table = [
        dict(part=part, ms=median(ms),
             floor_ms=None if under is None else median(under),
             ratio=None if under is None else ratio(ms, under), share=ratio(
                 ms, iteration)) for part, ms, under in rows]
    return dict(figures, parts=table)


def show(figures, args):
    table = Table(title=f'{os.path.basename(args.config)}, '
                  f'{args.image_size} px, batch {args.batch_size}, widths '
                  f'{args.widths}, {args.device}')
    for column in ('part', 'ms', 'floor ms', 'ratio', 'of the iteration'):
        table.add_column(column,
                         justify='left' if column == 'part' else 'right')
    for row in figures['parts']:
        floor, ratio = row['floor_ms'], row['ratio']
        table.add_row(row['part'], f'{row["ms"]:.1f}',
                      '' if floor is None else f'{floor:.1f}',
                      '' if ratio is None else f'{ratio:.3f}',
                      f'{100 * row["share"]:.1f} %')
    console = Console()
    console.print(table)
    console.print('floor: bare passes of plain networks')
    console.print(
        f'beyond the bare passes: {100 * figures["beyond_the_passes"]:.1f} % '
        'of the iteration')
    if 'regularisation_share' not in figures:
        return
    console.print(
        f'group regularisation: {100 * figures["regularisation_share"]:.2f} % '
        'of the iteration; the float64-mask way takes '
        f'{figures["mask_over_regularisation"]:.1f} times as long')


def benchmark(args):
    torch.manual_seed(0)
    MMLogger.get_instance('benchmark', log_level='WARNING')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        algorithm, wrapper, group_dims = build_algorithm(args)
        plan = Plan.fixed(args.widths)
        bare = bare_passes(algorithm, plan)
    decay = None
    if group_dims is not None:
        decay = GroupDecay(named_parameters(algorithm), group_dims=group_dims)
        decay.set_ramp(1.0)
        wrapper.regularise(decay)
    layout = (torch.channels_last
              if algorithm.channels_last else torch.contiguous_format)
    views = [
        torch.randn(args.batch_size, 3, args.image_size, args.image_size,
                    device=args.device).contiguous(memory_format=layout)
        for _ in range(2)]
    watch = Stopwatch(args.device)
    for index in track(range(args.rounds + 1), 'timing'):
        time_round(watch, algorithm, wrapper, bare, views, plan, decay,
                   group_dims)
        if index == 0:
            watch.times.clear()  # the warm-up
    figures = summarise(watch, [pass_.name for pass_ in plan.passes])
    show(figures, args)
    save(figures, args)


def main(argv=None):
    args = parse_args(argv)
    with errors_as_sentences('train_step', args.debug):
        benchmark(args)


if __name__ == '__main__':
    main()
