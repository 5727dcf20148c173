# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .calibration import calibrate, calibrate_detector
from .complexity import Complexity, count_complexity
from .features import encode, encoder, extract_features, raw_pixels
from .gates import GateUse, calibrate_threshold, measure_gates
from .knn import chance_accuracy, knn_accuracy
from .latency import width_latency
from .linear_probe import linear_probe
from .loading import load_backbone
from .report import Report, WidthRow
from .widths import Measures, WidthEvaluation, default_subnets

__all__ = [
    'Complexity', 'GateUse', 'Measures', 'Report', 'WidthEvaluation',
    'WidthRow', 'calibrate', 'calibrate_detector', 'calibrate_threshold',
    'chance_accuracy', 'count_complexity', 'default_subnets', 'encode',
    'encoder', 'extract_features', 'knn_accuracy', 'linear_probe',
    'load_backbone', 'measure_gates', 'raw_pixels', 'width_latency']
