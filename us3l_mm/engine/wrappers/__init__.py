# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .cpu_amp import CpuAmpOptimWrapper
from .multi_pass_ddp import MultiPassDistributedDataParallel
from .multi_pass_optim_wrapper import MultiPassOptimWrapper

__all__ = [
    'CpuAmpOptimWrapper', 'MultiPassDistributedDataParallel',
    'MultiPassOptimWrapper']
