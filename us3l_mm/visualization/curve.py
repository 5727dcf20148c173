# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Accuracy against compute, with a line for each run."""
from dataclasses import dataclass
from itertools import cycle
from typing import Dict, List, Optional, Sequence, Tuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
INK, MUTED = '#222222', '#777777'


@dataclass(frozen=True)
class Line:
    """One run to draw.

    Attributes:
        name (str): The name in the legend.
        points (sequence[tuple]): Names of sub-networks, each with its compute
            and its accuracy in percent.
        muted (bool): Whether the run is a baseline, drawn grey and without
            labels.
    """

    name: str
    points: Sequence[Tuple[str, float, float]]
    muted: bool = False


def draw_curve(path: str, lines: Sequence[Line],
               levels: Optional[Dict[str, float]] = None,
               x_label: str = 'GMACs per image',
               y_label: str = 'kNN accuracy (%)', title: str = '') -> None:
    """Write a PNG of accuracy against compute.

    Args:
        path (str): The file to write.
        lines (sequence[Line]): The runs.
        levels (dict, optional): Horizontal lines by name, in percent.
        x_label (str): Label of the axis of compute, which is logarithmic.
        y_label (str): Label of the axis of accuracy.
        title (str): Title of the picture.
    """
    figure = Figure(figsize=(7.2, 4.6), dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_lines(axes, lines)
    _draw_levels(axes, levels or {})
    axes.set_xscale('log')
    axes.set_xticks(_apart([x for line in lines for _, x, _ in line.points]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:.3g}'))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.set_title(title, loc='left', fontsize=11, color=INK)
    axes.margins(x=0.06, y=0.12)
    if levels:
        axes.set_ylim(bottom=0)
    axes.grid(axis='y', color='#E5E5E5', zorder=0)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc='best')
    figure.savefig(path)


def _draw_lines(axes, lines: Sequence[Line]) -> None:
    colours, labelled = cycle(COLOURS), set()
    for line in lines:
        points = sorted(line.points, key=lambda point: point[1])
        _, xs, ys = zip(*points)
        colour = MUTED if line.muted else next(colours)
        axes.plot(xs, ys, marker='o', color=colour, label=line.name,
                  markersize=4 if line.muted else 6,
                  linewidth=1.2 if line.muted else 2.2,
                  linestyle=':' if line.muted else '-', zorder=3)
        for name, x, y in points:
            # Runs of one architecture share their labels.
            if line.muted or (name, x) in labelled:
                continue
            axes.annotate(name, (x, y), (0, 7), fontsize=8,
                          textcoords='offset points', ha='center',
                          color=colour)
            labelled.add((name, x))


def _draw_levels(axes, levels: Dict[str, float]) -> None:
    for name, level in levels.items():
        axes.axhline(level, color=MUTED, linewidth=1, linestyle='--', zorder=1)
        axes.annotate(f'{name} {level:.1f}', (1, level), (-4, 3),
                      xycoords=('axes fraction', 'data'), fontsize=8,
                      textcoords='offset points', ha='right', color=MUTED)


def _apart(xs: Sequence[float], share: float = 0.075) -> List[float]:
    """Values of ``xs`` with room for a label between them, from the largest.

    Neighbours are at least a ``share`` of the logarithmic axis apart.
    """
    xs = sorted(set(xs), reverse=True)
    least = (xs[0] / xs[-1])**share
    kept = xs[:1]
    for x in xs[1:]:
        if kept[-1] > least * x:
            kept.append(x)
    return kept
