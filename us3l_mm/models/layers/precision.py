# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import torch
from torch import Tensor


def at_least_single(x: Tensor) -> Tensor:
    """``x`` in single precision if it is in half precision, else ``x``."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
