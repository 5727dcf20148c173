# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .curve import Line, draw_curve
from .gates import draw_gates
from .instances import Instances, draw_grid, draw_instances
from .report_plots import plot_measures, plot_reports
from .width_table import width_table

__all__ = [
    'Instances', 'Line', 'draw_curve', 'draw_gates', 'draw_grid',
    'draw_instances', 'plot_measures', 'plot_reports', 'width_table']
