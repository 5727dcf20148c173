# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .dense_gated import DenseGatedSSL
from .multi_pass import MultiPassSSL, check_views, encode, spread
from .multi_pass_model import MultiPassModel
from .passes import Batch, run_passes
from .plan import Pass, Plan, Sandwich
from .slimclr import SlimCLR
from .teacher import Teacher
from .us3l import US3LAlgorithm

__all__ = [
    'Batch', 'DenseGatedSSL', 'MultiPassModel', 'MultiPassSSL', 'Pass', 'Plan',
    'Sandwich', 'SlimCLR', 'Teacher', 'US3LAlgorithm', 'check_views', 'encode',
    'run_passes', 'spread']
