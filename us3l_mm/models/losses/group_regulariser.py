# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from copy import copy
from itertools import compress
from typing import Iterable, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

MODES = ('linear', 'exp')


class GroupRegulariser:
    r"""Weight decay that is weaker on the trailing channels.

    The loss term is

    .. math:: \sum_p \sum_g \lambda_g \lVert p_g \rVert^2,\quad
              \lambda_g = \lambda (1 - \alpha g) \text{ or } \lambda \alpha^g

    (mode 'linear' or 'exp') over whole, un-sliced parameters, whose channels
    are split into groups g = 0, 1, ... of equal size, the last one taking the
    remainder. The leading channels, shared by every width, pay most. ``lam``
    is half of the weight decay it replaces, as there is no 1/2. Source: US3L,
    arXiv 2303.06870, section 3 (group regularisation).

    The gradient is just :math:`2 \lambda_g p`, so it does not go through
    autograd: :meth:`loss` gives the value, and after the backward pass
    :meth:`add_gradients` adds the gradient in place. Loss scaling, clipping,
    accumulation and data parallel training treat it like that of a loss term.

    Args:
        parameters (iterable[tuple[str, nn.Parameter]]): What to decay, by
            name.
        lam (float): :math:`\lambda`, multiplying squared norms.
        alpha (float): :math:`\alpha`, reached when the ramp is 1.
        mode (str): 'linear' or 'exp'.
        groups (int): Number of groups.
        group_dims (mapping[int, int], optional): Which dimension of a
            parameter of so many dimensions is split into groups; others pay
            plain lam in all their channels. Defaults to {1: 0, 4: 0}.
        base_pass_skip (sequence[str]): Parameters whose name has one of these
            parts are left alone in the base pass.
        value_interval (int): The norms behind the logged value are taken in
            every so many base passes; the gradient does not need them.
            Defaults to 10.
    """

    def __init__(self, parameters: Iterable[Tuple[str, nn.Parameter]],
                 lam: float = 5e-5, alpha: float = 0.05, mode: str = 'linear',
                 groups: int = 8, group_dims: Optional[Mapping[int,
                                                               int]] = None,
                 base_pass_skip: Sequence[str] = ('predictor', ),
                 value_interval: int = 10):
        if mode not in MODES:
            raise ValueError(f'mode is one of {MODES}, got {mode!r}.')
        # Vectors last: they are short and many, and summed as one.
        named = sorted(parameters, key=lambda item: item[1].dim() == 1)
        self.lam, self.alpha, self.mode = lam, alpha, mode
        group_dims = {1: 0, 4: 0} if group_dims is None else group_dims
        everything = _Parameters([p for _, p in named], groups, group_dims)
        kept = [
            not set(name.split('.')) & set(base_pass_skip) for name, _ in named
        ]
        self._all, self._squares, self._pending = everything, None, []
        self._base_passes, self.value_interval = 0, value_interval
        self._passes = {False: everything, True: everything.only(kept)}
        self.set_ramp(0.0)

    def set_ramp(self, ramp: float) -> None:
        """Recompute the coefficients; ``ramp`` goes from 0, plain decay, to 1.

        It takes alpha from 0 in 'linear', and from 1 in 'exp'.
        """
        for parameters in self._passes.values():
            parameters.set_coefficients(lambda g: group_coefficient(
                g, self.lam, self.alpha, self.mode, ramp))

    def loss(self, is_base: bool) -> Tensor:
        """The loss term of one pass, a scalar, to be added to its loss.

        Its value is there to be logged, and moves slowly: the norms are those
        of the weights at most ``value_interval`` iterations ago.
        """
        if is_base:
            if self._base_passes % self.value_interval == 0:
                self._squares = None
            self._base_passes += 1
        if self._squares is None:
            self._squares = self._all.squares()
        current = self._passes[is_base]
        # A leaf: the backward pass tells it by what the loss was scaled.
        value = current.value(self._squares).requires_grad_()
        self._pending.append((current, value))
        return value

    def add_gradients(self) -> None:
        """Add the gradients of :meth:`loss` whose backward pass is over.

        They are exact: those of the weights as they are now.
        """
        for current, value in self._pending:
            if value.grad is not None:
                current.add_gradients(value.grad)
        self._pending.clear()


class _Parameters:
    """Value and gradient of sum(c * p**2), each in one fused call."""

    def __init__(self, parameters: List[nn.Parameter], groups: int,
                 group_dims: Mapping[int, int]):
        self.parameters = parameters
        self.values = [p.detach() for p in parameters]
        self.group = [group_index(p, groups, group_dims) for p in parameters]
        # Views of the channels of one group each, and which group that is;
        # of a vector each channel counts by itself.
        self.chunks, self.vectors, self.chunk_group = [], [], []
        for values, group in zip(self.values, self.group):
            indices, counts = group.flatten().unique_consecutive(
                return_counts=True)
            if values.dim() == 1:
                self.vectors.append(values)
                indices = group.expand_as(values)
            elif len(indices) == 1:
                self.chunks.append(values)
            else:
                self.chunks += values.split(counts.tolist(),
                                            group_dims[values.dim()])
            self.chunk_group.append(indices)
        self.counted = torch.ones(len(torch.cat(self.chunk_group)))

    def only(self, kept: List[bool]) -> '_Parameters':
        """Those of the parameters that are ``kept``; the others count 0."""
        part = copy(self)
        part.parameters, part.values, part.group = (list(compress(
            items,
            kept)) for items in (self.parameters, self.values, self.group))
        part.counted = torch.cat([
            torch.full((len(groups), ), float(keep))
            for groups, keep in zip(self.chunk_group, kept)
        ])
        return part

    def set_coefficients(self, of_group) -> None:
        like = self.values[0]
        self.coefficients = (of_group(torch.cat(self.chunk_group)) *
                             self.counted).to(like)
        self.slopes = [2 * of_group(group).to(like) for group in self.group]

    def squares(self) -> Tensor:
        """Squared norm of each chunk, then squares of the vectors."""
        norms = torch._foreach_norm(self.chunks) if self.chunks else []
        return torch.cat([*(n.view(1) for n in norms), *self.vectors]).square()

    def value(self, squares: Tensor) -> Tensor:
        return self.coefficients @ squares

    def add_gradients(self, scale: Tensor) -> None:
        slopes = torch._foreach_mul(self.slopes, scale)
        for p in self.parameters:
            if p.grad is None:  # not used in this pass, but decayed in it
                p.grad = torch.zeros_like(p)
        torch._foreach_addcmul_([p.grad for p in self.parameters], self.values,
                                slopes)


def group_coefficient(group: Tensor, lam: float, alpha: float, mode: str,
                      ramp: float) -> Tensor:
    """What each ``group`` pays: lam of group 0, less of the later ones."""
    return lam * (1 - ramp * alpha * group if mode == 'linear' else
                  (1 - ramp * (1 - alpha))**group)


def group_index(parameter: Tensor, groups: int,
                group_dims: Mapping[int, int]) -> Tensor:
    """The group of each channel, float64, broadcasting over ``parameter``.

    Zero throughout where ``group_dims`` names no dimension. The last group
    takes the remainder: all channels where these are fewer than the groups.
    """
    dim = group_dims.get(parameter.dim())
    if dim is None:
        return torch.zeros([1] * parameter.dim(), dtype=torch.float64)
    channels = parameter.shape[dim]
    group = torch.arange(groups, dtype=torch.float64).repeat_interleave(
        channels // groups)
    group = torch.cat(
        [group, group.new_full((channels - len(group), ), groups - 1)])
    shape = [1] * parameter.dim()
    shape[dim] = channels
    return group.view(shape)
