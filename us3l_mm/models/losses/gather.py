# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Embeddings of all processes, for losses that compare images."""
from typing import Tuple

import torch
from mmengine.dist import all_gather, all_reduce, get_rank, get_world_size
from torch import Tensor


def gather_rows(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; no gradient.

    Args:
        x (Tensor): (N, d), N the same on every process.

    Returns:
        Tensor: (world size * N, d).
    """
    return torch.cat(all_gather(x.detach().contiguous()))


def gather_with_gradient(x: Tensor) -> Tensor:
    """:func:`gather_rows` with the gradient of one's own rows.

    It is right for a loss that every process computes over all rows, with
    gradients averaged over processes as data parallel training does: that of
    one process with all the rows.
    """
    return _GatherRows.apply(x)


def gather_pair(x: Tensor, y: Tensor, gather: bool) -> Tuple[Tensor, Tensor]:
    """Two views with the rows of all processes if ``gather``, with gradient.
    """
    if gather and get_world_size() > 1:
        return gather_with_gradient(x), gather_with_gradient(y)
    return x, y


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of ``x`` over the processes, with the gradient of one's own.

    Averaging gradients over processes, as data parallel training does, then
    gives that of a function of the mean.
    """
    if get_world_size() == 1:
        return x
    mean = x.detach().clone()
    all_reduce(mean, 'mean')
    return mean + (x - x.detach())


class _GatherRows(torch.autograd.Function):
    """Rows of all processes; the gradient goes to one's own.

    Every process computes the joint loss, so the gradient of its own rows is
    complete without a second exchange. Averaging over processes then leaves
    1 / world size of it: the factor here takes that back.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        return gather_rows(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        start = get_rank() * ctx.rows
        return get_world_size() * grad[start:start + ctx.rows]
