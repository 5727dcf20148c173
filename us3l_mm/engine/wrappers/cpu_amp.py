# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from contextlib import contextmanager
from typing import Union

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from us3l_mm.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """Mixed precision on a CPU: bfloat16, which needs no loss scale.

    MMEngine's ``AmpOptimWrapper`` is for accelerators only. ``tools/train.py
    --amp`` uses this one instead on a machine without any.

    Args:
        dtype (str or torch.dtype): Only 'bfloat16'. Defaults to 'bfloat16'.
        **kwargs: Arguments of ``OptimWrapper``.
    """

    def __init__(self, dtype: Union[str, torch.dtype] = 'bfloat16', **kwargs):
        if dtype not in ('bfloat16', torch.bfloat16):
            raise ValueError('Mixed precision on a CPU is bfloat16, got '
                             f'dtype={dtype!r}.')
        super().__init__(**kwargs)

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Run a block in mixed precision."""
        with super().optim_context(model), torch.autocast(
                'cpu', dtype=torch.bfloat16):
            yield
