# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from contextlib import contextmanager
from typing import Iterator

from torch import nn


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Run a block in evaluation mode, and restore the mode of each module."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
