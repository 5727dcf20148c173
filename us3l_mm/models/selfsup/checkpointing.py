# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Activation checkpointing that several widths and processes can use."""
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def use_plain_checkpoints(backbone: nn.Module) -> bool:
    """Let the blocks of ``with_cp=True`` compute again without re-entrance.

    MMPretrain's blocks call PyTorch's re-entrant checkpoints. Distributed
    training cannot see the parameters inside of these, takes them for unused
    and fails; and they recompute with another width without noticing.

    Returns:
        bool: Whether there are any such blocks.
    """
    found = False
    for block in backbone.modules():
        if block is not backbone and getattr(block, 'with_cp', False):
            block.with_cp, found = False, True
            block.forward = partial(checkpoint, block.forward,
                                    use_reentrant=False)
    return found
