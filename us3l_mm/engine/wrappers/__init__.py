# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .cpu_amp import CpuAmpOptimWrapper
from .us3l_ddp import US3LDistributedDataParallel

__all__ = ['CpuAmpOptimWrapper', 'US3LDistributedDataParallel']
