# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import os.path as osp
from functools import partial
from typing import List, Sequence

from us3l_mm.evaluation.report import Report
from us3l_mm.export.checkpoint_io import write_atomically
from .curve import Line, draw_curve

MEASURES = {'knn': 'kNN accuracy (%)', 'linear': 'linear probe accuracy (%)'}


def plot_reports(path: str, reports: Sequence[Report], measure: str = 'knn',
                 compute: str = 'gmacs') -> None:
    """Draw accuracy against compute of several reports in one PNG.

    Args:
        path (str): The file to write.
        reports (sequence[Report]): The first one brings the baselines.
        measure (str): 'knn' or 'linear'.
        compute (str): 'gmacs' or 'params'.
    """
    if measure not in MEASURES:
        raise ValueError(f'measure is one of {sorted(MEASURES)}, got '
                         f'{measure!r}.')
    lines = [_line(report.name, report, measure, compute)
             for report in reports]
    levels, first = {}, reports[0]
    if measure == 'knn':
        lines.append(_line('untrained', first, 'untrained_knn', compute,
                           muted=True))
        if first.raw_pixels is not None:
            levels['raw pixels'] = first.raw_pixels
    if first.chance is not None:
        levels['chance'] = first.chance
    draw_curve(path, [line for line in lines if line.points], levels, compute,
               MEASURES[measure], 'Accuracy against compute, every point from '
               'one checkpoint')


def plot_measures(folder: str, reports: Sequence[Report]) -> List[str]:
    """Draw what was measured: ``widths_knn.png``, ``widths_linear.png``.

    Returns:
        list[str]: The files that were written.
    """
    paths = []
    for measure in MEASURES:
        if any(getattr(row, measure) is not None for row in reports[0].rows):
            paths.append(osp.join(folder, f'widths_{measure}.png'))
            write_atomically(paths[-1], partial(
                plot_reports, reports=reports, measure=measure))
    return paths


def _line(name: str, report: Report, measure: str, compute: str,
          muted: bool = False) -> Line:
    return Line(name, [
        (row.width, row.gmacs if compute == 'gmacs' else row.params / 1e6,
         getattr(row, measure)) for row in report.rows
        if getattr(row, measure) is not None], muted)
