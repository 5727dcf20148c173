# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Optional

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.runner import Runner, find_latest_checkpoint

from us3l_mm.engine.wrappers.multi_pass_optim_wrapper import not_finite
from us3l_mm.registry import HOOKS


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Stop a training that leaves out too many optimizer steps.

    A :class:`~us3l_mm.engine.MultiPassOptimWrapper` makes no step whose loss
    or gradient is not finite, on any process; the log counts them as
    ``skipped``. The student keeps its weights then, so the teacher never sees
    others.

    The loss scale of float16 starts too high on purpose, and each step that
    it loses halves it: some skipped steps at the beginning are normal.

    Args:
        max_consecutive (int): Number of optimizer steps left out in
            succession at which training stops. Defaults to 30, which takes
            the initial loss scale of 2**16 to 2**-14.
        max_total (int, optional): Number of steps left out altogether at
            which training stops. Defaults to None: any number.
    """

    # Before a checkpoint is written or removed.
    priority = 'ABOVE_NORMAL'

    def __init__(self, max_consecutive: int = 30,
                 max_total: Optional[int] = None):
        for name, value in (('max_consecutive', max_consecutive), ('max_total',
                                                                   max_total)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f'{name} is a number of steps of at least '
                                 f'1, got {value!r}.')
        self.max_consecutive, self.max_total = max_consecutive, max_total

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Stop, on all processes together, when it has been too much."""
        # MMEngine has read all that is logged from the device by now.
        wrapper = runner.optim_wrapper
        if not hasattr(wrapper, 'skipped'):  # only weights are checked
            return
        total, consecutive = int(wrapper.skipped), int(wrapper.consecutive)
        if total and self.max_total is not None and total >= self.max_total:
            self._stop(
                runner, f'{total} optimizer steps so far were not '
                f'finite and left out (max_total={self.max_total})')
        if consecutive and consecutive >= self.max_consecutive:
            self._stop(
                runner, f'The last {consecutive} optimizer steps were '
                'not finite and left out '
                f'(max_consecutive={self.max_consecutive})')

    def after_train_epoch(self, runner: Runner) -> None:
        """Stop before weights that are not finite replace good ones."""
        self._check_weights(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Let no checkpoint with weights that are not finite be written."""
        self._check_weights(runner)

    def _check_weights(self, runner: Runner) -> None:
        weights = dict(runner.model.named_parameters())
        if not not_finite([w.detach() for w in weights.values()]):
            return
        names = [
            name for name, w in weights.items() if not torch.isfinite(w).all()
        ]
        if names:  # else it is the norm that overflows
            raise FloatingPointError(
                f'After iteration {runner.iter}, {len(names)} parameters are '
                f'not finite, such as {names[0]}, though every gradient was: '
                'a step overflowed. No checkpoint of this is written; '
                f'{_last_good(runner)} A lower learning rate may help.')

    def _stop(self, runner: Runner, what: str) -> None:
        last = runner.optim_wrapper.last_skipped
        found = [None] if last is None else all_gather_object(_describe(last))
        details = '; '.join(
            f'process {rank}: {text}' if len(found) > 1 else text
            for rank, text in enumerate(found) if text)
        raise FloatingPointError(
            f'Training stopped in iteration {runner.iter + 1}. {what}. '
            f'{details + ". " if details else ""}{_last_good(runner)} Try a '
            'lower learning rate, a longer warm-up, optim_wrapper.clip_grad='
            'dict(max_norm=...), or bfloat16 or single precision for float16; '
            'look for broken images.')


def _describe(step: dict) -> Optional[str]:
    """Which sub-networks and losses the step that was left out had."""
    if not step['left_out']:
        return None
    passes = ', '.join(f'{pass_.name} (width {pass_.subnet.width:g})'
                       for pass_ in step['passes'])
    losses = {name: float(value) for name, value in step['losses'].items()}
    bad = [
        f'{name}={value}' for name, value in losses.items()
        if not torch.isfinite(torch.tensor(value))
    ]
    return f'in the passes {passes}, ' + (
        'not finite: ' + ', '.join(bad)
        if bad else 'a gradient was not finite, the losses were: ' +
        ', '.join(f'{name}={value:.4g}' for name, value in losses.items()))


def _last_good(runner: Runner) -> str:
    path = find_latest_checkpoint(runner.work_dir)
    return ('There is no checkpoint yet.'
            if path is None else f'The last good checkpoint is {path}.')
