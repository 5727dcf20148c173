# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Batch normalisation of a network that runs at many widths."""
from typing import List, Optional

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, all_reduce, get_world_size
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from us3l_mm.registry import MODELS
from .width import FULL_WIDTH, SlimmableLayer, active_channels


def statistics_suffix(width: float) -> str:
    """What is appended to ``running_mean`` for the statistics of ``width``.

    Nothing at full width, so that these keep the keys of a plain network; else
    the width in millionths: ``'_w0500000'`` for 0.5. That is exact for
    multiples of 1/64; other widths that agree to six decimals share their
    statistics.
    """
    if width == FULL_WIDTH:
        return ''
    return f'_w{round(width * 1000000):07d}'


def suffix_width(suffix: str) -> float:
    """The width of a suffix made by :func:`statistics_suffix`."""
    return int(suffix[2:]) / 1000000 if suffix else FULL_WIDTH


class SynchronisedNorm(torch.autograd.Function):
    """Batch norm of ``x`` (N, c, ...) by the statistics of all processes.

    Each may hold another number of images. One exchange forward, of mean,
    squared deviations and count, which are merged exactly; one backward. In
    single precision at least.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Optional[Tensor],
                bias: Optional[Tensor], eps: float) -> Tensor:
        dims, shape = [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2)
        values = _at_least_single(x)
        count = values.new_full((1, ), x.numel() / x.shape[1])
        var, mean = torch.var_mean(values, dims, correction=0)
        means, deviations, counts = torch.stack(
            all_gather(torch.cat([mean, var * count, count]))).split(
                [len(mean), len(mean), 1], dim=1)  # a row per process
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        var = (deviations + counts * (means - mean).square()).sum(0) / total
        rstd = torch.rsqrt(var + eps)
        ctx.save_for_backward(x, weight, mean, rstd, total)
        y = (values - mean.view(shape)) * rstd.view(shape)
        if weight is not None:
            y = y * weight.view(shape) + bias.view(shape)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        x, weight, mean, rstd, total = ctx.saved_tensors
        dims, shape = [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2)
        values, slope = _at_least_single(x), _at_least_single(grad)
        normal = (values - mean.view(shape)) * rstd.view(shape)
        own = torch.stack([slope.sum(dims), (slope * normal).sum(dims)])
        joint = own.clone()
        all_reduce(joint)
        first, second = (row.view(shape) for row in joint / total)
        scale = rstd if weight is None else rstd * weight
        grad_x = scale.view(shape) * (slope - first - normal * second)
        # Those of the affine parameters are averaged with all gradients.
        affine = (None, None) if weight is None else (own[1], own[0])
        return grad_x.to(x.dtype), *affine, None


def _at_least_single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class SlimmableBatchNorm(SlimmableLayer, _BatchNorm):
    """Batch norm over leading channels, with statistics per width.

    * Training uses the statistics of the batch. No running statistics are
      tracked: an average over several widths would fit none of them.
    * Evaluation uses the statistics that were *measured* for the width at hand
      (:meth:`set_statistics`, called by the calibration), and refuses to run
      without them.
    * A training step forgets measured statistics, since it changes the weights
      that they were measured with.

    The affine parameters are shared: ``weight[:c]``, ``bias[:c]``. Statistics
    of the full width live in the buffers of a plain batch norm, those of a
    width 0.5 in ``running_mean_w0500000`` and ``running_var_w0500000``; both
    are in the state dict. Source: US3L, arXiv 2303.06870 (universally
    slimmable training and calibration as in US-Nets, 1903.05134).

    Args:
        num_features (int): Channels at full width.
        eps (float): Added to the variance. Defaults to 1e-5.
        affine (bool): Whether to learn scale and shift. Defaults to True.
        slice_channels (bool): Whether the channels narrow with the width;
            False inside a projector. Defaults to True.
        divisor (int): Channels are rounded to multiples of it. Defaults to 8.
        ratio (int): Expand ratio to round by. Defaults to 1.
        sync (bool): Whether the statistics of a batch are those of all
            processes together. Defaults to False.
        momentum (float): Accepted for the configs of plain norms; there is no
            running average that it could apply to. Defaults to 0.1.

    Shapes: (N, c, ...) to the same.
    """

    def __init__(self, num_features: int, eps: float = 1e-5,
                 momentum: float = 0.1, affine: bool = True,
                 slice_channels: bool = True, divisor: int = 8, ratio: int = 1,
                 sync: bool = False):
        super().__init__(num_features, eps, momentum, affine)
        self.slice_channels, self.divisor = slice_channels, divisor
        self.ratio, self.sync = ratio, sync
        # Suffixes of the widths with statistics. Kept on the host, so that
        # asking for them never waits for the device.
        self._measured = set()
        self.on_width()

    def active(self, width: float) -> int:
        """Channels at ``width``."""
        if not self.slice_channels:
            return self.num_features
        return active_channels(self.num_features, width, self.divisor,
                               self.ratio)

    def on_width(self) -> None:
        self.active_features = self.active(self.width)

    @property
    def measured_widths(self) -> List[float]:
        """The widths that have statistics, ascending."""
        return sorted(map(suffix_width, self._measured))

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        c = self.active_features
        weight, bias = self.weight, self.bias
        if self.affine:
            weight, bias = weight[:c], bias[:c]
        if self.training:
            if self._measured and torch.is_grad_enabled():
                self.clear_statistics()
            if self.sync and get_world_size() > 1:
                return SynchronisedNorm.apply(x, weight, bias, self.eps)
            return F.batch_norm(x, None, None, weight, bias, True, 0.0,
                                self.eps)
        mean, var = self.statistics(self.width)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps)

    def statistics(self, width: float) -> tuple:
        """Measured (mean, variance) at ``width``, each of shape (c,).

        Raises:
            RuntimeError: if none were measured for this width.
        """
        suffix = statistics_suffix(width)
        if suffix not in self._measured:
            known = ', '.join(f'{w:g}' for w in self.measured_widths)
            raise RuntimeError(
                f'No batch-norm statistics for width {width:g}; measured are: '
                f'{known or "none"}. Training tracks none. Measure them with '
                'us3l_mm.evaluation.calibrate(network, batches, widths='
                f'[{width:g}]) or tools/evaluate_widths.py.')
        return (getattr(self, f'running_mean{suffix}'),
                getattr(self, f'running_var{suffix}'))

    @torch.no_grad()
    def set_statistics(self, width: float, mean: Tensor, var: Tensor) -> None:
        """Store the ``mean`` and ``var`` of ``width``, each of shape (c,)."""
        suffix, c = statistics_suffix(width), self.active(width)
        if mean.shape != (c, ) or var.shape != (c, ):
            raise ValueError(
                f'Statistics at width {width:g} have {c} channels, got mean '
                f'of shape {tuple(mean.shape)}, variance of shape '
                f'{tuple(var.shape)}.')
        like = self.running_mean
        self.register_buffer(f'running_mean{suffix}', mean.to(like).clone())
        self.register_buffer(f'running_var{suffix}', var.to(like).clone())
        if not suffix:
            self.num_batches_tracked.fill_(1)
        self._measured.add(suffix)

    def clear_statistics(self) -> None:
        """Forget the statistics of all widths."""
        for suffix in self._measured - {''}:
            del self._buffers[f'running_mean{suffix}']
            del self._buffers[f'running_var{suffix}']
        self.reset_running_stats()
        self._measured.clear()

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Load, taking over exactly the statistics that the file holds."""
        self.clear_statistics()
        stem = f'{prefix}running_mean'
        tracked = state_dict.get(f'{prefix}num_batches_tracked')
        for key in [key for key in state_dict if key.startswith(stem)]:
            suffix = key[len(stem):]
            # A fresh network's file has zeros for means at full width, and
            # says so; a file without the counter comes from an old plain one.
            if not suffix and tracked is not None and tracked == 0:
                continue
            self._measured.add(suffix)
            for name in ('running_mean', 'running_var') if suffix else ():
                values = state_dict[f'{prefix}{name}{suffix}']
                self.register_buffer(name + suffix,
                                     self.running_mean.new_empty(values.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if tracked is None and '' in self._measured:
            self.num_batches_tracked.fill_(1)  # so that our own file says so

    @torch.no_grad()
    def plain(self, width: float) -> _BatchNorm:
        """An ordinary batch norm with weights and statistics of ``width``.

        Statistics that were never measured stay those of a new layer.
        """
        c = self.active(width)
        norm = self.plain_type(c, self.eps, self.momentum, self.affine)
        norm.to(self.running_mean)
        if self.affine:
            norm.weight.copy_(self.weight[:c])
            norm.bias.copy_(self.bias[:c])
        if statistics_suffix(width) in self._measured:
            mean, var = self.statistics(width)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)
            norm.num_batches_tracked.fill_(1)
        return norm.train(self.training)


# `_BatchNorm` is named as a base once more because MMEngine's initialisers and
# MMCV's layer names look at the direct bases of a class.
@MODELS.register_module()
class SlimmableBatchNorm1d(SlimmableBatchNorm, _BatchNorm):
    """:class:`SlimmableBatchNorm` of inputs (N, c) or (N, c, L)."""

    plain_type = nn.BatchNorm1d
    _check_input_dim = nn.BatchNorm1d._check_input_dim


@MODELS.register_module()
class SlimmableBatchNorm2d(SlimmableBatchNorm, _BatchNorm):
    """:class:`SlimmableBatchNorm` of inputs (N, c, H, W)."""

    plain_type = nn.BatchNorm2d
    _check_input_dim = nn.BatchNorm2d._check_input_dim
