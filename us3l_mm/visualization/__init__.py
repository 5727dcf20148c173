# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .curve import Line, draw_curve
from .report import plot_measures, plot_reports

__all__ = ['Line', 'draw_curve', 'plot_measures', 'plot_reports']
