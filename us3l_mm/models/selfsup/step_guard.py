# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Optimizer steps whose gradient is not finite are left out."""
from typing import Dict, List, Optional, Sequence

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor

from .subnet import Subnet


class StepGuard:
    """Leaves out optimizer steps whose gradient is not finite; counts them.

    Processes agree without asking each other: they see the gradient after its
    all-reduce, in which one that is not finite on any of them stays so, and
    :func:`poisoned` makes the gradient of a loss that is not finite such a
    one. A gradient whose norm overflows counts as not finite.

    To leave a step out, its one flag is read from the device, which waits for
    the backward pass, as PyTorch's ``GradScaler`` does. Fused optimizers
    (``optimizer=dict(type='AdamW', fused=True)``) read it on the device
    instead, and nothing waits.

    Args:
        total (int): Steps that were left out before, in a resumed run.

    Attributes:
        total (Tensor): Steps left out so far, a scalar.
        consecutive (Tensor): Those since the last step that was made.
        recent (dict, optional): The last step left out: its ``subnets`` and
            ``losses``; the latest step, where only the device knows whether
            it was ``left_out``.
    """

    def __init__(self, total: int = 0):
        self.total = torch.tensor(total)
        self.consecutive = torch.tensor(0)
        self.recent: Optional[dict] = None

    def step(self, optim_wrapper: OptimWrapper, subnets: Sequence[Subnet],
             losses: Dict[str, Tensor]) -> None:
        """``optim_wrapper.step()`` if all gradients are finite.

        Args:
            optim_wrapper (OptimWrapper): Of the step.
            subnets (sequence[Subnet]): The passes of it, for the message.
            losses (dict[str, Tensor]): Their losses, for the message.
        """
        optimizer = optim_wrapper.optimizer
        bad = not_finite([
            p.grad for group in optimizer.param_groups for p in group['params']
            if p.grad is not None
        ])
        if self.total.device != bad.device:  # in the first step
            self.total, self.consecutive = (torch.full_like(
                bad, int(count),
                dtype=torch.int64) for count in (self.total, self.consecutive))
        self.total = self.total + bad
        self.consecutive = (self.consecutive + 1) * bad
        described = dict(subnets=subnets, losses=losses, left_out=bad)
        scaler = getattr(optim_wrapper, 'loss_scaler', None)
        if scaler is not None and scaler.is_enabled():
            # It finds the same, leaves the step out and lowers its scale.
            optim_wrapper.step()
            self.recent = described
        elif skips_on_device(optimizer):
            optimizer.grad_scale, optimizer.found_inf = None, bad.float()
            optim_wrapper.step()
            del optimizer.grad_scale, optimizer.found_inf
            self.recent = described
        elif bad:
            self.recent = described
        else:
            optim_wrapper.step()


def not_finite(gradients: List[Tensor]) -> Tensor:
    """Whether any element is not finite, a boolean scalar on the device."""
    norms = torch._foreach_norm(gradients)
    return ~torch.isfinite(torch.stack(norms)).all()


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``optimizer`` can be told on the device not to step."""
    return (getattr(optimizer, '_step_supports_amp_scaling', False)
            and all(group.get('fused') for group in optimizer.param_groups))


def poisoned(loss: Tensor) -> Tensor:
    """``loss`` itself; its gradient is NaN where it is not finite.

    A loss may be infinite with a finite gradient, on one process alone.
    """
    return loss * (1 + 0 * loss.detach())
