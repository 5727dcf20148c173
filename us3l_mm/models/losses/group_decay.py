# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from collections import defaultdict
from typing import Dict, Iterable, Mapping, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

MODES = ('linear', 'exp')


class GroupDecay:
    r"""Weight decay that is weaker on the trailing channels.

    The loss term of each pass is

    .. math:: \sum_p \sum_g \lambda_g \lVert p_g \rVert^2,\quad
              \lambda_g = \lambda (1 - \alpha g) \text{ or } \lambda \alpha^g

    (mode 'linear' or 'exp') over whole, un-sliced parameters, whose channels
    are split into groups g = 0, 1, ... of equal size, the last one taking the
    remainder. The leading channels, shared by all widths, decay most. Source:
    US3L, arXiv 2303.06870, section 3 (group regularisation).

    The gradient is just :math:`2 \lambda_g p`, so it does not go through
    autograd: :meth:`add_gradients` adds it before the optimizer steps, where
    clipping and accumulation treat it as the gradient of a loss.

    An adaptive optimizer would divide this gradient by its own size. With
    ``decoupled=True``, :meth:`before_step` applies

    .. math:: p_g \leftarrow (1 - 2 \eta \lambda_g) p_g

    with the learning rate :math:`\eta` instead, as AdamW (arXiv 1711.05101)
    does with a ``weight_decay`` of :math:`2 \lambda`. A parameter without a
    gradient is then left alone.

    Args:
        parameters (iterable[tuple[str, nn.Parameter]]): Parameters to decay,
            with their names.
        lam (float): :math:`\lambda`, which multiplies squared norms: half of
            the weight decay it replaces. Defaults to 5e-5.
        alpha (float): :math:`\alpha`, reached when the ramp is 1. Defaults to
            0.05.
        mode (str): 'linear' or 'exp'. Defaults to 'linear'.
        groups (int): Number of groups. Defaults to 8.
        group_dims (mapping[int, int], optional): By number of dimensions of a
            parameter, the dimension that is split into groups; others have
            plain lam in all their channels. Defaults to {1: 0, 4: 0}.
        base_pass_skip (sequence[str]): Parameters with one of these parts in
            their name do not decay in the base pass. Defaults to
            ('predictor', ).
        value_interval (int): The norms for the logged value are computed in
            one of this number of iterations; the gradient does not need them.
            Defaults to 10.
        decoupled (bool): Whether to shrink the parameters at the step instead
            of adding gradients. Defaults to False.
    """

    def __init__(self, parameters: Iterable[Tuple[str, nn.Parameter]],
                 lam: float = 5e-5, alpha: float = 0.05, mode: str = 'linear',
                 groups: int = 8, group_dims: Optional[Mapping[int,
                                                               int]] = None,
                 base_pass_skip: Sequence[str] = ('predictor', ),
                 value_interval: int = 10, decoupled: bool = False):
        if mode not in MODES:
            raise ValueError(f'mode is one of {MODES}, got {mode!r}.')
        if lam < 0:
            raise ValueError(f'lam is not negative, got {lam}.')
        for name, value in (('groups', groups), ('value_interval',
                                                 value_interval)):
            if value < 1:
                raise ValueError(f'{name} is at least 1, got {value}.')
        most = 1 / max(groups - 1, 1) if mode == 'linear' else 1.0
        if not 0 <= alpha <= most:
            raise ValueError(
                f'alpha is in [0, {most:.4g}] for mode={mode!r} and {groups} '
                f'groups, or a group would grow; got {alpha}.')
        group_dims = {1: 0, 4: 0} if group_dims is None else group_dims
        named = dict(parameters)
        self.lam, self.alpha, self.mode = lam, alpha, mode
        self.decoupled, self.value_interval = decoupled, value_interval
        self.parameters = list(named.values())
        self._group = [
            group_index(p, groups, group_dims) for p in self.parameters]
        skipped = [
            bool(set(name.split('.')) & set(base_pass_skip)) for name in named]
        self._skipped = self.parameters[0].new_tensor(skipped)
        self._parts = [[i for i, skip in enumerate(skipped) if skip == part]
                       for part in (False, True)]
        self._iterations = 0
        self.set_ramp(0.0)

    def set_ramp(self, ramp: float) -> None:
        """Recompute the coefficients; ``ramp`` goes from 0, plain decay, to 1.

        It takes alpha from 0 in 'linear', and the factor from 1 in 'exp'.
        """
        coefficients = [
            group_coefficient(group, self.lam, self.alpha, self.mode, ramp)
            for group in self._group]
        self._slopes = [(2 * c).to(p)
                        for c, p in zip(coefficients, self.parameters)]
        self._roots = [
            c.sqrt().to(p) for c, p in zip(coefficients, self.parameters)]
        self._of = dict(zip(self.parameters, self._slopes))
        self._value: Optional[Tuple[Tensor, Tensor]] = None
        # Those that decay in all passes, then those that rest in base passes.
        self._terms = [([self.parameters[i]
                         for i in part], [self._slopes[i] for i in part])
                       for part in self._parts]

    @torch.no_grad()
    def value(self, roles: Sequence[str]) -> Tensor:
        """The loss terms of passes with these roles, a scalar, for the log.

        The norms are those of the weights at most ``value_interval``
        iterations ago.
        """
        if (self._value is None
                or self._iterations % self.value_interval == 0):
            norms = torch.stack(
                torch._foreach_norm(
                    torch._foreach_mul(self.parameters,
                                       self._roots))).square()
            self._value = norms.sum(), norms @ self._skipped
        self._iterations += 1
        everything, skipped = self._value
        return len(roles) * everything - list(roles).count('base') * skipped

    @torch.no_grad()
    def add_gradients(self, passes: Dict[str, float],
                      scale: Union[float, Tensor]) -> None:
        """Add the gradients of the loss terms of some passes.

        Args:
            passes (dict[str, float]): By role, the number of passes, divided
                by the number of batches that are accumulated.
            scale (float or Tensor): The loss scale of mixed precision.
        """
        everywhere = sum(passes.values())
        counts = everywhere, everywhere - passes.get('base', 0)
        for count, (values, slopes) in zip(counts, self._terms):
            if not count or not values:
                continue
            for p in values:
                if p.grad is None:  # not used in the passes, but decayed
                    p.grad = torch.zeros_like(p)
            torch._foreach_addcmul_([p.grad for p in values], values,
                                    torch._foreach_mul(slopes, count * scale))

    def before_step(self, optimizer: torch.optim.Optimizer, args,
                    kwargs) -> None:
        """Shrink the parameters; for ``optimizer.register_step_pre_hook``.

        A step that a loss scaler or anybody else leaves out decays nothing.
        """
        # Fused optimizers find out on the device only.
        left_out = getattr(optimizer, 'found_inf', None)
        by_rate: Dict[float, Tuple[list, list]] = defaultdict(lambda: ([], []))
        for group in optimizer.param_groups:
            values, slopes = by_rate[group['lr']]
            for p in group['params']:
                if p.grad is not None and p in self._of:
                    values.append(p.detach())
                    slopes.append(self._of[p])
        for rate, (values, slopes) in by_rate.items():
            if values and left_out is not None:
                slopes = torch._foreach_mul(slopes, 1 - left_out)
            if values:
                torch._foreach_addcmul_(values, values, slopes, value=-rate)


def group_coefficient(group: Tensor, lam: float, alpha: float, mode: str,
                      ramp: float) -> Tensor:
    """The coefficients of ``group``: lam for group 0, less for later ones."""
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
    group = torch.cat([
        group, group.new_full((channels - len(group), ), groups - 1)])
    shape = [1] * parameter.dim()
    shape[dim] = channels
    return group.view(shape)
