# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Dict, Iterable, List, Mapping, Sequence, Tuple

import torch
from torch import Tensor, nn


class GroupRegulariser:
    r"""Weight decay that is weaker on the trailing channels.

    The loss term is

    .. math:: \sum_p \sum_g \lambda_g \lVert p_g \rVert^2,\quad
              \lambda_g = \lambda (1 - \alpha g) \text{ or } \lambda \alpha^g

    (mode 'linear' or 'exp') over whole, un-sliced parameters, whose channels are split into groups
    g = 0, 1, ... of equal size, the last one taking the remainder. The leading
    channels, shared by every width, pay most. ``lam`` is half of the weight
    decay it replaces, as there is no 1/2. Source: US3L, arXiv 2303.06870,
    section 3 (group regularisation).

    The gradient is just :math:`2 \lambda_g p`. It is a term of the loss and
    not of the optimizer, so that loss scaling, clipping, accumulation and
    all-reduce treat it as any gradient.

    Args:
        parameters (iterable[tuple[str, nn.Parameter]]): What to decay, by
            name.
        lam (float): :math:`\lambda`, multiplying squared norms.
        alpha (float): :math:`\alpha`, reached when the ramp is 1.
        mode (str): 'linear' or 'exp'.
        groups (int): Number of groups.
        group_dims (mapping[int, int]): Which dimension of a parameter of so
            many dimensions is split into groups; others pay plain lam in all
            their channels.
        base_pass_skip (sequence[str]): Parameters whose name has one of these
            parts are left alone in the base pass.
    """

    MODES = ('linear', 'exp')

    def __init__(self, parameters: Iterable[Tuple[str, nn.Parameter]],
                 lam: float = 5e-5, alpha: float = 0.05, mode: str = 'linear', groups: int = 8,
                 group_dims: Mapping[int, int] = {1: 0, 4: 0},
                 base_pass_skip: Sequence[str] = ('predictor', )):
        if mode not in self.MODES:
            raise ValueError(
                f'mode is one of {self.MODES}, got {mode!r}.')
        named = list(parameters)
        self.lam, self.alpha, self.mode = lam, alpha, mode
        self.parameters = [p for _, p in named]
        self.in_base_pass = [
            index for index, (name, _) in enumerate(named)
            if not any(part in name.split('.') for part in base_pass_skip)]
        self._group = [group_index(p, groups, group_dims)
                       for p in self.parameters]
        self.set_ramp(0.0)

    @torch.no_grad()
    def set_ramp(self, ramp: float) -> None:
        """Recompute the coefficients; ``ramp`` goes from 0, plain decay, to 1.

        It takes alpha from 0 in 'linear', and from 1 in 'exp'.
        """
        if self.mode == 'linear':
            factors = [1 - ramp * self.alpha * g for g in self._group]
        else:
            factors = [(1 - ramp * (1 - self.alpha))**g for g in self._group]
        coefficients = [self.lam * factor for factor in factors]
        # Of each pass, all that the value and the gradient need.
        self._passes: Dict[bool, Tuple[list, List[Tensor], List[Tensor]]] = {}
        for is_base, chosen in ((False, range(len(self.parameters))),
                                (True, self.in_base_pass)):
            lam_g = [coefficients[i].to(self.parameters[i]) for i in chosen]
            self._passes[is_base] = ([self.parameters[i] for i in chosen],
                                     [c.sqrt() for c in lam_g],
                                     [2 * c for c in lam_g])

    def loss(self, is_base: bool) -> Tensor:
        """The loss term of one pass, a scalar."""
        parameters, root, slope = self._passes[is_base]
        return _GroupPenalty.apply(root, slope, *parameters)


def group_index(parameter: Tensor, groups: int,
                group_dims: Mapping[int, int]) -> Tensor:
    """The group of each channel, float64, broadcasting over ``parameter``.

    Zero throughout where ``group_dims`` names no dimension, and where there
    are fewer channels than groups, which leaves one group.
    """
    dim = group_dims.get(parameter.dim())
    if dim is None:
        return torch.zeros([1] * parameter.dim(), dtype=torch.float64)
    channels = parameter.shape[dim]
    size = channels // groups or channels
    group = torch.arange(channels, dtype=torch.float64).div(
        size, rounding_mode='floor').clamp(max=groups - 1)
    shape = [1] * parameter.dim()
    shape[dim] = channels
    return group.view(shape)


class _GroupPenalty(torch.autograd.Function):
    """sum(c * p**2) with the gradient 2 * c * p, in a few fused calls."""

    @staticmethod
    def forward(ctx, root, slope, *parameters):
        ctx.slope = slope
        ctx.save_for_backward(*parameters)
        norms = torch._foreach_norm(torch._foreach_mul(parameters, root))
        return torch.stack(norms).square().sum()

    @staticmethod
    def backward(ctx, grad):
        slope = torch._foreach_mul(ctx.slope, grad)
        gradients = torch._foreach_mul(ctx.saved_tensors, slope)
        return (None, None, *gradients)
