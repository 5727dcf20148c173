# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Which channels gates leave on."""
from typing import Dict

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from .curve import INK, MUTED

# From the bottom of a bar to its top, each with a colour and a name.
KINDS = dict(on=('#0072B2', 'always on'),
             data_dependent=('#E69F00', 'data-dependent'), off=('#DDDDDD',
                                                                'always off'))


def draw_gates(path: str, gates: Dict[str, Dict[str, dict]]) -> None:
    """Write a PNG with a stacked bar for each gate of each network.

    Args:
        path (str): The file to write.
        gates (dict): By the name of the network and of the gate, from the
            image on: numbers of channels that are always ``on``, always
            ``off`` and ``data_dependent``, and their ``density``.
    """
    most = max(len(bars) for bars in gates.values())
    figure = Figure(figsize=(7.2, 1.1 + 2.1 * len(gates) + 0.012 * most**2),
                    dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(gates), sharex=True, squeeze=False)[:, 0]
    for axes, (name, bars) in zip(panels, gates.items()):
        _draw_bars(axes, bars)
        axes.set_title(name, loc='left', fontsize=10, color=INK)
    panels[-1].tick_params('x', rotation=45 if most <= 16 else 90)
    figure.supylabel('share of the channels', fontsize=10, color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside upper center', ncols=4,
                  frameon=False, fontsize=9)
    figure.savefig(path)


def _draw_bars(axes, bars: Dict[str, dict]) -> None:
    # Without the 'gate1' of blocks that have one gate.
    single = all(name.endswith('.gate1') for name in bars)
    names = [name.removesuffix('.gate1') if single else name for name in bars]
    below = [0.0] * len(bars)
    for kind, (colour, label) in KINDS.items():
        heights = [
            bar[kind] / sum(bar[k] for k in KINDS) for bar in bars.values()]
        axes.bar(names, heights, bottom=below, color=colour, label=label)
        below = [low + height for low, height in zip(below, heights)]
    axes.plot(names, [bar['density'] for bar in bars.values()], 'D', color=INK,
              markersize=5, label='density: mean share that is on')
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.tick_params(labelsize=8, color=MUTED)
    axes.spines[['top', 'right']].set_visible(False)
