# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Batch normalisation with the statistics of all processes."""
from typing import Optional

import torch
from mmengine.dist import all_gather, all_reduce
from torch import Tensor, nn

from .precision import at_least_single
from .subnet import SlimmableLayer


class SynchronisedNorm(torch.autograd.Function):
    """Batch norm of ``x`` (N, c, ...) by the statistics of all processes.

    PyTorch's SyncBatchNorm runs on accelerators only, with one parameter for
    each channel; this one runs on CPUs as well. The processes may hold
    different numbers of images. They exchange mean, squared deviations and
    count once in the forward pass, which are merged exactly, and once in the
    backward pass. Sums are in single precision at least.

    Returns:
        tuple: The normalised ``x``, then mean and unbiased variance of the
        joint batch, both (c, ) and without gradient.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Optional[Tensor],
                bias: Optional[Tensor], eps: float) -> tuple:
        dims, shape = [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2)
        values = at_least_single(x)
        count = values.new_full((1, ), x.numel() / x.shape[1])
        var, mean = torch.var_mean(values, dims, correction=0)
        means, deviations, counts = torch.stack(
            all_gather(torch.cat([mean, var * count, count]))).split([
                len(mean), len(mean), 1], dim=1)  # (processes, c or 1) each
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        deviations = (deviations + counts * (means - mean).square()).sum(0)
        rstd = torch.rsqrt(deviations / total + eps)
        ctx.save_for_backward(x, weight, mean, rstd, total)
        y = (values - mean.view(shape)) * rstd.view(shape)
        if weight is not None and bias is not None:
            y = y * weight.view(shape) + bias.view(shape)
        var = deviations / (total - 1).clamp(min=1)
        ctx.mark_non_differentiable(mean, var)
        return y.to(x.dtype), mean, var

    @staticmethod
    def backward(ctx, grad: Tensor, *_) -> tuple:
        x, weight, mean, rstd, total = ctx.saved_tensors
        dims, shape = [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2)
        values, slope = at_least_single(x), at_least_single(grad)
        normal = (values - mean.view(shape)) * rstd.view(shape)
        own = torch.stack([slope.sum(dims), (slope * normal).sum(dims)])
        joint = own.clone()
        all_reduce(joint)
        first, second = (row.view(shape) for row in joint / total)
        scale = rstd if weight is None else rstd * weight
        grad_x = scale.view(shape) * (slope - first - normal * second)
        # The gradients of weight and bias are averaged with all others.
        affine = (None, None) if weight is None else (own[1], own[0])
        return grad_x.to(x.dtype), *affine, None


def set_sync(network: nn.Module, sync: bool) -> None:
    """Set ``sync`` on all slimmable norms in ``network``, a teacher's too."""
    for module in network.modules():
        if isinstance(module, SlimmableLayer) and hasattr(module, 'sync'):
            module.sync = sync
