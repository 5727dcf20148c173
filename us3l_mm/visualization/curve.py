# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Accuracy against compute, a line per run."""
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

COMPUTE = {'gmacs': 'GMACs per image', 'params': 'parameters (million)'}
# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
INK, MUTED = '#222222', '#777777'


@dataclass(frozen=True)
class Line:
    """One run to draw.

    Attributes:
        name (str): For the legend.
        points (sequence[tuple]): Width, compute, accuracy in percent.
        muted (bool): Whether it is a baseline, drawn grey and unlabelled.
    """

    name: str
    points: Sequence[Tuple[float, float, float]]
    muted: bool = False


def draw_curve(path: str, lines: Sequence[Line],
               levels: Optional[Dict[str, float]] = None,
               compute: str = 'gmacs', measure: str = 'kNN accuracy (%)',
               title: str = '') -> None:
    """Write a PNG of accuracy against compute.

    Args:
        path (str): The file to write.
        lines (sequence[Line]): The runs.
        levels (dict, optional): Horizontal lines by name, in percent.
        compute (str): Horizontal axis, 'gmacs' or 'params', logarithmic.
        measure (str): Label of the vertical axis.
        title (str): Above the picture.
    """
    if compute not in COMPUTE:
        raise ValueError(f'compute is one of {sorted(COMPUTE)}, got '
                         f'{compute!r}.')
    figure = Figure(figsize=(7.2, 4.6), dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_lines(axes, lines)
    _draw_levels(axes, levels or {})
    _dress(axes, lines, COMPUTE[compute], measure, title)
    figure.savefig(path)


def _draw_lines(axes, lines: Sequence[Line]) -> None:
    colours = iter(COLOURS * (1 + len(lines) // len(COLOURS)))
    for line in lines:
        if not line.points:
            continue
        _, xs, ys = zip(*sorted(line.points))
        colour = MUTED if line.muted else next(colours)
        axes.plot(xs, ys, marker='o', color=colour, label=line.name,
                  markersize=4 if line.muted else 6,
                  linewidth=1.2 if line.muted else 2.2,
                  linestyle=':' if line.muted else '-', zorder=3)
        if not line.muted:
            for width, x, y in line.points:
                axes.annotate(f'{width:.3g}', (x, y), (0, 7), fontsize=8,
                              textcoords='offset points', ha='center',
                              color=colour)


def _draw_levels(axes, levels: Dict[str, float]) -> None:
    for name, level in levels.items():
        axes.axhline(level, color=MUTED, linewidth=1, linestyle='--',
                     zorder=1)
        axes.annotate(f'{name} {level:.1f}', (1, level), (-4, 3),
                      xycoords=('axes fraction', 'data'), fontsize=8,
                      textcoords='offset points', ha='right', color=MUTED)


def _dress(axes, lines, x_label: str, y_label: str, title: str) -> None:
    axes.set_xscale('log')
    xs = sorted({x for line in lines for _, x, _ in line.points})
    axes.set_xticks(_apart(xs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:.3g}'))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which='minor', length=0)
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.set_title(title, loc='left', fontsize=11, color=INK)
    axes.margins(x=0.06, y=0.12)
    axes.grid(axis='y', color='#E5E5E5', zorder=0)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc='best')


def _apart(xs: List[float], ratio: float = 1.18) -> List[float]:
    """Those of ``xs`` that are far enough apart for their labels."""
    kept: List[float] = []
    for x in xs:
        if not kept or x / kept[-1] > ratio:
            kept.append(x)
    return kept
