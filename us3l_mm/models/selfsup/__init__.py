# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .base_methods import BASE_METHODS, LOSSES
from .passes import check_optim_wrapper, run_passes
from .subnet import Plan, Subnet
from .teacher import Teacher, encode
from .us3l import US3LAlgorithm, check_views, spread

__all__ = [
    'BASE_METHODS', 'LOSSES', 'Plan', 'Subnet', 'Teacher', 'US3LAlgorithm',
    'check_optim_wrapper', 'check_views', 'encode', 'run_passes', 'spread'
]
