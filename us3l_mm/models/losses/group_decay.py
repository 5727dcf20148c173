# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from collections import defaultdict
from typing import Iterable, Mapping, Optional, Tuple

import torch
from torch import nn

from .group_regulariser import group_coefficient, group_index


class GroupDecay:
    r"""Group regularisation for optimizers that decouple weight decay.

    Just before each step of the optimizer,

    .. math:: p_g \leftarrow (1 - 2 \eta \lambda_g) p_g

    with the learning rate :math:`\eta` and the coefficients of
    :class:`GroupRegulariser`. An adaptive optimizer would divide the gradient
    of a loss term by its own size; this is what AdamW (arXiv 1711.05101) does
    with ``weight_decay`` :math:`= 2 \lambda`, and like there a parameter
    without a gradient is left alone. In a loss, the term is the whole
    gradient of a weight that nothing else needs, and Adam would take it to 0
    at full speed, however small :math:`\lambda` is.

    Args:
        parameters (iterable[tuple[str, nn.Parameter]]): What to decay, by
            name.
        lam, alpha, mode, groups, group_dims: As of :class:`GroupRegulariser`.
    """

    def __init__(self, parameters: Iterable[Tuple[str, nn.Parameter]],
                 lam: float = 0.05, alpha: float = 0.05, mode: str = 'linear',
                 groups: int = 8, group_dims: Optional[Mapping[int,
                                                               int]] = None):
        group_dims = {1: 0, 4: 0} if group_dims is None else group_dims
        self._group = {
            p: group_index(p, groups, group_dims)
            for _, p in parameters
        }
        self._arguments = lam, alpha, mode
        self.set_ramp(0.0)

    def set_ramp(self, ramp: float) -> None:
        """Recompute the coefficients; ``ramp`` goes from 0, plain decay, to 1.
        """
        self._slopes = {
            p: 2 * group_coefficient(group, *self._arguments, ramp).to(p)
            for p, group in self._group.items()
        }

    def before_step(self, optimizer: torch.optim.Optimizer, args,
                    kwargs) -> None:
        """Decay; for ``optimizer.register_step_pre_hook``.

        A step that a loss scaler or anybody else leaves out decays nothing.
        """
        # Told to a fused optimizer, which finds out on the device only.
        left_out = getattr(optimizer, 'found_inf', None)
        by_rate = defaultdict(lambda: ([], []))
        for group in optimizer.param_groups:
            values, slopes = by_rate[group['lr']]
            for p in group['params']:
                if p.grad is not None and p in self._slopes:
                    values.append(p.detach())
                    slopes.append(self._slopes[p])
        for rate, (values, slopes) in by_rate.items():
            if values and left_out is not None:
                slopes = torch._foreach_mul(slopes, 1 - left_out)
            if values:
                torch._foreach_addcmul_(values, values, slopes, value=-rate)
