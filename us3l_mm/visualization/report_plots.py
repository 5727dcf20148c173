# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import os.path as osp
from dataclasses import replace
from functools import partial
from typing import Dict, List, Sequence, Tuple

from us3l_mm.evaluation.report import Report
from us3l_mm.fileio import write_atomically
from .curve import Line, draw_curve
from .gates import draw_gates

# For each kind of compute: the least value for a unit, its factor, its name.
COMPUTE = {
    'gmacs': ((0.1, 1.0, 'GMACs per image'), (0, 1e3, 'MMACs per image')),
    'params': ((1e5, 1e-6, 'parameters (million)'),
               (0, 1e-3, 'parameters (thousand)')), }
MEASURES = {'knn': 'kNN accuracy (%)', 'linear': 'linear probe accuracy (%)'}


def plot_reports(path: str, reports: Sequence[Report], measure: str = 'knn',
                 compute: str = 'gmacs') -> None:
    """Draw accuracy against compute of several reports in one PNG.

    Args:
        path (str): The file to write.
        reports (sequence[Report]): The reports; the baselines are those of
            the first one. Reports with the same name are one line, for
            instance networks that were each trained for one width.
        measure (str): 'knn' or 'linear'.
        compute (str): 'gmacs' or 'params'.
    """
    for name, value, known in (('measure', measure, MEASURES),
                               ('compute', compute, COMPUTE)):
        if value not in known:
            raise ValueError(f'{name} is one of {sorted(known)}, got '
                             f'{value!r}.')
    points: Dict[str, List[tuple]] = {}
    levels, first = {}, reports[0]
    for report in reports:
        points.setdefault(report.name, []).extend(
            _points(report, measure, compute))
    lines = [Line(name, of_name) for name, of_name in points.items()]
    if measure == 'knn':
        lines.append(
            Line('untrained', _points(first, 'untrained_knn', compute),
                 muted=True))
        if first.raw_pixels is not None:
            levels['raw pixels'] = first.raw_pixels
    if first.chance is not None:
        levels['chance'] = first.chance
    lines, unit = _with_unit([line for line in lines if line.points], compute)
    draw_curve(
        path, lines, levels, unit, MEASURES[measure],
        'Accuracy against compute' +
        (': sub-networks of one checkpoint' if len(reports) == 1 else ''))


def plot_measures(folder: str, reports: Sequence[Report]) -> List[str]:
    """Draw what was measured: ``widths_knn.png``, ``widths_linear.png``.

    Of gated networks also ``widths_gates.png``, see :func:`draw_gates`.

    Returns:
        list[str]: The files that were written.
    """
    paths = []
    for measure in MEASURES:
        if any(getattr(row, measure) is not None for row in reports[0].rows):
            paths.append(osp.join(folder, f'widths_{measure}.png'))
            write_atomically(
                paths[-1],
                partial(plot_reports, reports=reports, measure=measure))
    first = reports[0]
    gates = {row.label: row.gates for row in first.rows if row.gates}
    if gates:
        paths.append(osp.join(folder, 'widths_gates.png'))
        write_atomically(paths[-1], partial(draw_gates, gates=gates))
    return paths


def _points(report: Report, measure: str, compute: str) -> List[tuple]:
    return [(report.label(row), getattr(row, compute), getattr(row, measure))
            for row in report.rows if getattr(row, measure) is not None]


def _with_unit(lines: Sequence[Line], compute: str) -> Tuple[List[Line], str]:
    """The lines in a unit without many zeros, and the name of the unit."""
    most = max(x for line in lines for _, x, _ in line.points)
    factor, unit = next((factor, unit)
                        for least, factor, unit in COMPUTE[compute]
                        if most >= least)
    return [
        replace(line, points=[(n, x * factor, y) for n, x, y in line.points])
        for line in lines], unit
