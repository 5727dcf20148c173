# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .calibration import calibrate
from .complexity import Complexity, count_complexity
from .features import encode, encoder, extract_features, raw_pixels
from .knn import chance_accuracy, knn_accuracy
from .loading import load_network, read_checkpoint
from .report import Report, WidthRow
from .widths import Measures, WidthEvaluation

__all__ = [
    'Complexity', 'Measures', 'Report', 'WidthEvaluation', 'WidthRow',
    'calibrate', 'chance_accuracy', 'count_complexity', 'encode', 'encoder',
    'extract_features', 'knn_accuracy', 'load_network', 'raw_pixels',
    'read_checkpoint'
]
