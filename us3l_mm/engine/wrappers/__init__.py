# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .us3l_ddp import US3LDistributedDataParallel

__all__ = ['US3LDistributedDataParallel']
