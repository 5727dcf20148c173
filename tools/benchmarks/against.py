# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Training steps of this package beside those of somebody else."""
import os
import time
from statistics import median

import torch
from floor import bare_passes
from plain_us3l import PlainUS3L
from rich.console import Console
from rich.progress import track
from rich.table import Table
from stopwatch import Stopwatch
from trial import TEACHER, Trial

from us3l_mm.engine import DynamicSamplerHook
from us3l_mm.evaluation.latency import device_name
from us3l_mm.models import Plan


class Floor:
    """Bare passes of plain networks, and the plain teacher."""

    def __init__(self, algorithm, wrapper, plan):
        self.algorithm, self.wrapper = algorithm, wrapper
        self.bare = bare_passes(algorithm, plan)

    def __call__(self, views):
        with self.wrapper.optim_context(self.algorithm):
            with torch.no_grad():
                targets = self.bare[0].targets(views)
            for bare in self.bare:
                bare(views, targets)


def rival_of(against, trial, plan):
    """Whose step ``trial`` is compared with; it takes the views."""
    algorithm, wrapper = trial.algorithm, trial.runner.optim_wrapper
    if against == 'floor':
        return Floor(algorithm, wrapper, plan)
    if against == 'lightly':
        from lightly_methods import method_like
        return method_like(algorithm, wrapper)
    hook = trial.runner.cfg.default_hooks.get('group_reg') or {}
    return PlainUS3L(algorithm, wrapper, plan,
                     dict(hook.get('group_dims') or {
                         1: 0,
                         4: 0}))


def plan_of(against, trial):
    """The passes that are compared: of lightly's methods, the first one."""
    runner = trial.runner
    hook, = (h for h in runner.hooks if isinstance(h, DynamicSamplerHook))
    plan = hook.plan(0, runner.max_iters, trial.algorithm.backbone.width_range)
    return Plan((plan.base, )) if against == 'lightly' else plan


def on_processor_time(args):
    """Whether times are those of the processor.

    They depend less on other programs, and are those of one thread only.
    """
    return args.device.startswith('cpu') and torch.get_num_threads() == 1


def measure(args, setting, folder):
    """The figures of one setting."""
    trial = Trial(args, setting, folder)
    algorithm, wrapper = trial.algorithm, trial.runner.optim_wrapper
    plan = plan_of(args.against, trial)
    rival = rival_of(args.against, trial, plan)
    if wrapper.regulariser is not None:
        wrapper.regulariser.set_ramp(1.0)
    clock = time.process_time if on_processor_time(args) else time.perf_counter
    watch, trial.parts.clock = Stopwatch(args.device, clock), clock
    make_views, teacher = algorithm.views, []
    # A script without a teacher has nothing to do in its place.
    left_out = not getattr(rival, 'has_teacher', True)
    try:
        for index in track(range(args.rounds + 1), setting):
            with trial.at_work():
                batch = trial.next_batch()
            views = make_views(batch)
            algorithm.views = lambda data: data['views']
            theirs = views if args.against == 'floor' else [
                view.contiguous() for view in views]
            trial.parts.collect()
            watch(
                'ours', lambda: algorithm.train_step(
                    dict(views=views, plan=plan), wrapper))
            teacher.append(trial.parts.collect()[TEACHER])
            watch('theirs', lambda: rival(theirs))
            if index == 0:  # the warm-up
                watch.times.clear()
                teacher.clear()
    finally:
        trial.close()
    ours, theirs = watch.ms('ours'), watch.ms('theirs')
    counted = [a - t * left_out for a, t in zip(ours, teacher)]
    ratios = [a / b for a, b in zip(counted, theirs)]
    return dict(setting=setting, batch_size=trial.batch_size,
                theirs=type(rival).__name__, without_teacher=left_out,
                ours_ms=median(counted), theirs_ms=median(theirs),
                ratio=median(ratios), ratio_range=[min(ratios),
                                                   max(ratios)])


def compare(args, folder):
    """The figures of all settings."""
    if args.against == 'lightly':
        import lightly_methods  # noqa: F401 (complains before long work)
    return dict(
        processor_time=on_processor_time(args), against=[
            measure(args, name, folder) for name in args.settings])


def show_ratios(figures, args):
    rows = figures['against']
    table = Table(title=f'{os.path.basename(args.config)}, batch '
                  f'{rows[0]["batch_size"]}, {device_name(args.device)}')
    table.add_column('setting', no_wrap=True)
    for column in ('ours ms', f'{rows[0]["theirs"]} ms', 'ours / theirs',
                   'rounds'):
        table.add_column(column, justify='right')
    for row in rows:
        low, high = row['ratio_range']
        table.add_row(row['setting'], f'{row["ours_ms"]:.1f}',
                      f'{row["theirs_ms"]:.1f}', f'{row["ratio"]:.3f}',
                      f'{low:.2f}..{high:.2f}')
    console = Console()
    console.print(table)
    if figures['processor_time']:
        console.print('ms: of the processor, in one thread')
    if rows[0]['without_teacher']:
        console.print('ours: the base pass without the momentum teacher, '
                      'which theirs does not have')
