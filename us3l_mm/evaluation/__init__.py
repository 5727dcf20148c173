# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .calibration import batch_statistics, calibrate
from .complexity import Complexity, count_complexity
from .features import encode, encoder, extract_features, raw_pixels
from .knn import chance_accuracy, knn_accuracy
from .latency import width_latency
from .linear_probe import linear_probe
from .loading import load_network, read_checkpoint
from .report import Report, WidthRow
from .widths import Measures, WidthEvaluation, evenly_spaced

__all__ = [
    'Complexity', 'Measures', 'Report', 'WidthEvaluation', 'WidthRow',
    'batch_statistics', 'calibrate', 'chance_accuracy', 'count_complexity',
    'encode', 'encoder', 'evenly_spaced', 'extract_features', 'knn_accuracy',
    'linear_probe', 'load_network', 'raw_pixels', 'read_checkpoint',
    'width_latency'
]
