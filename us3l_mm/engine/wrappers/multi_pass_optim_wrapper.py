# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Optimizer steps of several passes per batch, made only if finite."""
from collections import Counter
from typing import Dict, List, Optional

import torch
from mmengine.device import is_cuda_available
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from us3l_mm.models.losses import GroupDecay
from us3l_mm.models.selfsup import Pass, Plan
from us3l_mm.registry import OPTIM_WRAPPERS
from .cpu_amp import CpuAmpOptimWrapper


@OPTIM_WRAPPERS.register_module()
class MultiPassOptimWrapper(OptimWrapper):
    """MMEngine's ``OptimWrapper`` for several passes per batch.

    It counts batches where MMEngine counts backward passes, adds the
    gradients of the group regularisation, and makes no step whose gradient is
    not finite.

    Processes agree about such a step without exchanging messages: they see
    the gradient after its all-reduce, in which a value that is not finite
    stays so, and the gradient of a loss that is not finite is made not
    finite. A gradient whose norm overflows counts as not finite.

    Leaving out a step takes reading one flag from the device, which waits for
    the backward pass, as PyTorch's ``GradScaler`` does. Fused optimizers
    (``optimizer=dict(type='AdamW', fused=True)``) read it on the device, and
    nothing waits.

    Args:
        accumulative_counts (int): Number of batches per update. Defaults to
            1.
        **kwargs: Arguments of the ``OptimWrapper``.

    Attributes:
        regulariser (GroupDecay, optional): Adds gradients before each step.
        skipped (Tensor): Number of steps left out so far, a scalar.
        consecutive (Tensor): Number of steps left out since the last one that
            was made, a scalar.
        last_skipped (dict, optional): ``passes`` and ``losses`` of the last
            step left out, or of the last step if only the device knows
            whether it was ``left_out``.
    """

    def __init__(self, accumulative_counts: int = 1, **kwargs):
        super().__init__(accumulative_counts=accumulative_counts, **kwargs)
        self.accumulative_counts = accumulative_counts
        self.batch, self.num_batches = 0, -1
        self.regulariser: Optional[GroupDecay] = None
        self._decay_handle: Optional[RemovableHandle] = None
        device = self.optimizer.param_groups[0]['params'][0].device
        self.skipped = torch.tensor(0, device=device)
        self.consecutive = torch.zeros_like(self.skipped)
        self.last_skipped: Optional[dict] = None
        self._is_due = True
        self._passes: List[Pass] = []  # since the last update
        self._losses: Dict[str, Tensor] = {}
        self._log: Dict[str, Tensor] = {}

    def initialize_count_status(self, model: nn.Module, init_counts: int,
                                max_counts: int) -> None:
        """Set the numbers of batches that are done and that there will be."""
        super().initialize_count_status(model, init_counts, max_counts)
        self.batch, self.num_batches = init_counts, max_counts

    def regularise(self, decay: GroupDecay) -> None:
        """Install ``decay``, in place of an earlier one."""
        if self._decay_handle is not None:
            self._decay_handle.remove()
        self.regulariser = None if decay.decoupled else decay
        self._decay_handle = (self.optimizer.register_step_pre_hook(
            decay.before_step) if decay.decoupled else None)

    @property
    def begins_update(self) -> bool:
        """Whether the next batch is the first one of an update."""
        return self.batch % self.accumulative_counts == 0

    @property
    def ends_update(self) -> bool:
        """Whether the next batch is the last one of an update."""
        return ((self.batch + 1) % self.accumulative_counts == 0
                or self.batch + 1 == self.num_batches)

    def begin_batch(self, plan: Plan, update_mode: str) -> None:
        """Prepare for the passes of ``plan``."""
        self.check(update_mode)
        self._step_per_pass = update_mode == 'sequential'
        self._log = {}
        if self.regulariser is not None:
            self._log['loss_reg'] = self.regulariser.value([
                pass_.role for pass_ in plan.passes])

    def check(self, update_mode: str) -> None:
        """Refuse to accumulate batches where each pass has its own step."""
        if update_mode == 'sequential' and self.accumulative_counts != 1:
            raise ValueError(
                "update_mode='sequential' makes an optimizer step after each "
                'pass of a batch, so there is no gradient to accumulate over '
                f'batches; got accumulative_counts={self.accumulative_counts}.'
                " Leave it at 1, or set model.update_mode='accumulate' for an "
                f'update from all passes of {self.accumulative_counts} '
                'batches.')

    def begin_pass(self, pass_: Pass, is_last: bool) -> None:
        """Say which pass follows, and whether it is the last of its batch."""
        self._passes.append(pass_)
        self._is_due = self._step_per_pass or (is_last and self.ends_update)

    @property
    def current_pass(self) -> Optional[Pass]:
        """The pass that runs, if any does."""
        return self._passes[-1] if self._passes else None

    def update_pass(self, total: Tensor, losses: Dict[str, Tensor]) -> None:
        """Backward pass of ``total``, and the optimizer step if it is due.

        Args:
            total (Tensor): The sum of the losses of the pass, a scalar.
            losses (dict[str, Tensor]): The losses, for the message about a
                step that is left out.
        """
        self._losses.update({k: v.detach() for k, v in losses.items()})
        self.update_params(total)
        if self._is_due:
            self._passes, self._losses = [], {}

    def end_batch(self) -> dict:
        """Count the batch, and return entries of the log."""
        self.batch += 1
        return dict(self._log, skipped=self.skipped)

    def should_sync(self) -> bool:
        """Whether gradients are reduced over processes in this pass."""
        return self._is_due

    def should_update(self) -> bool:
        """Whether the optimizer steps after this pass."""
        return self._is_due

    def scale_loss(self, loss: Tensor) -> Tensor:
        """The loss, divided by the number of batches of the update."""
        return loss / self._batches_of_update()

    def _batches_of_update(self) -> int:
        counts = self.accumulative_counts
        rest = self.num_batches % counts if self.num_batches > 0 else 0
        # The last update of training may have fewer batches.
        return rest if rest and self.batch >= self.num_batches - rest else (
            counts)

    def backward(self, loss: Tensor, **kwargs) -> None:
        """Backward pass; the gradient is NaN if the loss is not finite.

        A loss may be infinite with a finite gradient, on one process alone.
        """
        super().backward(loss * (1 + 0 * loss.detach()), **kwargs)

    def step(self, **kwargs) -> None:
        """Regularise, and step if all gradients are finite."""
        scaler = getattr(self, 'loss_scaler', None)
        if self.regulariser is not None:
            counts = self._batches_of_update()
            roles = Counter(pass_.role for pass_ in self._passes)
            self.regulariser.add_gradients(
                {
                    role: number / counts for role, number in roles.items()},
                1.0 if scaler is None else scaler.scale(
                    torch.ones((), device=self.skipped.device)))
        bad = not_finite([
            p.grad for group in self.optimizer.param_groups
            for p in group['params'] if p.grad is not None])
        self.skipped = self.skipped + bad
        self.consecutive = (self.consecutive + 1) * bad
        described = dict(passes=self._passes, losses=self._losses,
                         left_out=bad)
        if scaler is not None and scaler.is_enabled():
            # It finds the same, leaves the step out and lowers its scale.
            super().step(**kwargs)
            self.last_skipped = described
        elif skips_on_device(self.optimizer):
            self.optimizer.grad_scale, self.optimizer.found_inf = (None,
                                                                   bad.float())
            super().step(**kwargs)
            del self.optimizer.grad_scale, self.optimizer.found_inf
            self.last_skipped = described
        elif bad:
            self.last_skipped = described
        else:
            super().step(**kwargs)

    def state_dict(self) -> dict:
        """State of the optimizer, and the number of steps left out."""
        return dict(super().state_dict(), skipped=int(self.skipped))

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the state; files of earlier versions have no such number."""
        state_dict = dict(state_dict)
        self.skipped = torch.full_like(self.skipped,
                                       state_dict.pop('skipped', 0))
        super().load_state_dict(state_dict)


def not_finite(gradients: List[Tensor]) -> Tensor:
    """Whether any element is not finite, a boolean scalar on the device."""
    norms = torch._foreach_norm(gradients)
    return ~torch.isfinite(torch.stack(norms)).all()


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``optimizer`` can be told on the device not to step."""
    return (getattr(optimizer, '_step_supports_amp_scaling', False)
            and all(group.get('fused') for group in optimizer.param_groups))


class _GpuAmp(MultiPassOptimWrapper, AmpOptimWrapper):
    pass


class _CpuAmp(MultiPassOptimWrapper, CpuAmpOptimWrapper):
    pass


@OPTIM_WRAPPERS.register_module(name='MultiPassAmpOptimWrapper')
def multi_pass_amp_optim_wrapper(dtype: Optional[str] = None, loss_scale=None,
                                 **kwargs) -> MultiPassOptimWrapper:
    """:class:`MultiPassOptimWrapper` in mixed precision.

    Args:
        dtype (str, optional): 'float16' or 'bfloat16' on a GPU, 'bfloat16' on
            a CPU. Defaults to the first one.
        loss_scale (str, float or dict, optional): Loss scale of MMEngine's
            ``AmpOptimWrapper``; bfloat16 on a CPU needs none. Defaults to
            'dynamic'.
        **kwargs: Other arguments of :class:`MultiPassOptimWrapper`.
    """
    if is_cuda_available():
        return _GpuAmp(dtype=dtype, loss_scale=loss_scale or 'dynamic',
                       **kwargs)
    return _CpuAmp(dtype=dtype or 'bfloat16', **kwargs)
