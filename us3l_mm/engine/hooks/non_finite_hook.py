# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from math import inf, isfinite
from typing import Any, List, Optional

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.runner import Runner, find_latest_checkpoint
from mmpretrain.utils import get_ori_model

from us3l_mm.engine.wrappers.multi_pass_optim_wrapper import not_finite
from us3l_mm.registry import HOOKS

# The first iterations, and how many of them may fail in a row.
BEGINNING, PATIENCE = 10, 3


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Stop training after too many skipped optimizer steps.

    A :class:`~us3l_mm.engine.MultiPassOptimWrapper` skips a step whose loss or
    gradient is not finite, on all processes; the log counts them as
    ``skipped``. The loss scale of float16 starts too high on purpose, and each
    skipped step halves it: some at the beginning are normal.

    Three such iterations in a row among the first ten stop training with any
    optimizer wrapper, and the error says whether the images, the weights or
    the learning rate are the cause.

    Args:
        max_consecutive (int): Number of successive skipped steps at which
            training stops. Defaults to 30, which takes the initial loss scale
            of 2**16 to 2**-14.
        max_total (int, optional): Number of all skipped steps at which
            training stops. Defaults to None: any number.
    """

    # Before a checkpoint is written or removed.
    priority = 'ABOVE_NORMAL'

    def __init__(self, max_consecutive: int = 30,
                 max_total: Optional[int] = None):
        if max_consecutive < 1 or (max_total is not None and max_total < 1):
            raise ValueError(
                'Training stops after at least 1 step, got max_consecutive='
                f'{max_consecutive} and max_total={max_total}.')
        self.max_consecutive, self.max_total = max_consecutive, max_total

    def before_train(self, runner: Runner) -> None:
        """Refuse weights that are not finite."""
        self._end_of_beginning = runner.iter + BEGINNING
        self._bad, self._was_finite = 0, False
        if names := _bad_parameters(runner):
            raise FloatingPointError(
                f'{len(names)} parameters are not finite before the first '
                f'iteration, such as {names[0]}. Check the file of load_from, '
                '--resume or init_cfg.')

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Stop on all processes together."""
        wrapper = runner.optim_wrapper
        if runner.iter < self._end_of_beginning:
            self._check_beginning(runner, data_batch, outputs or {})
        if not hasattr(wrapper, 'skipped'):  # only weights are checked
            return
        # MMEngine has read what is logged from the device by now.
        total, consecutive = int(wrapper.skipped), int(wrapper.consecutive)
        if consecutive >= self.max_consecutive:
            what = (f'The last {consecutive} optimizer steps were not finite '
                    'and left out (max_consecutive='
                    f'{self.max_consecutive})')
        elif self.max_total is not None and total >= self.max_total:
            what = (f'{total} optimizer steps so far were not finite and left '
                    f'out (max_total={self.max_total})')
        else:
            return
        last = wrapper.last_skipped
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

    def _check_beginning(self, runner: Runner, batch: Optional[dict],
                         outputs: dict) -> None:
        losses = [
            isfinite(value) for name, value in outputs.items()
            if 'loss' in name and name != 'loss_reg']
        self._was_finite |= any(losses)
        wrapper = runner.optim_wrapper
        scaler = getattr(wrapper, 'loss_scaler', None)
        is_bad = not all(losses) or (scaler is None and bool(
            getattr(wrapper, 'consecutive', False)))
        # A loss may be finite on one process and not on another.
        self._bad = self._bad + 1 if any(all_gather_object(is_bad)) else 0
        if self._bad == PATIENCE:
            raise FloatingPointError(
                f'Training stopped in iteration {runner.iter + 1}: loss or '
                f'gradient have not been finite for {PATIENCE} iterations '
                f'since its beginning. {self._cause(runner, batch)}')

    def _cause(self, runner: Runner, batch: Optional[dict]) -> str:
        assert batch is not None  # the Runner always passes it
        model = get_ori_model(runner.model)
        preprocessor = model.data_preprocessor
        images = {k: value for k, value in batch.items() if k != 'plan'}
        largest = _largest(preprocessor(images)['inputs'])
        if not largest < 1e3:
            mean, std = (getattr(preprocessor, name,
                                 torch.tensor([])).flatten().tolist()
                         for name in ('mean', 'std'))
            return (f'The images are the cause: their largest value is '
                    f'{largest:.3g} after normalization by mean={mean} and '
                    f'std={std}. Pixels are numbers from 0 to 255: correct '
                    'data_preprocessor.mean and std, or look for broken '
                    'images.')
        if self._was_finite:
            rate = runner.optim_wrapper.get_lr()['lr'][0]
            return ('The images and the first loss are finite, so the '
                    f'learning rate is the likely cause, now {rate:g}: lower '
                    'optim_wrapper.optimizer.lr, lengthen the warm-up, or '
                    'train in bfloat16 or single precision.')
        size, name = max((float(weight.detach().abs().max()), name)
                         for name, weight in model.named_parameters())
        return ('The images are finite, and not even the first loss was, so '
                f'the initial weights are the likely cause: the largest is '
                f'{size:.3g}, in {name}. Check the file of load_from or '
                'init_cfg.')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save no checkpoint with weights that are not finite."""
        self.after_train_epoch(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Stop if weights are not finite."""
        if names := _bad_parameters(runner):
            raise FloatingPointError(
                f'After iteration {runner.iter}, {len(names)} parameters are '
                f'not finite, such as {names[0]}, though every gradient was: '
                'a step overflowed. No checkpoint of this is written; '
                f'{_last_good(runner)} A lower learning rate may help.')


def _bad_parameters(runner: Runner) -> List[str]:
    """The names of the parameters that are not finite."""
    weights = dict(runner.model.named_parameters())
    if not not_finite([w.detach() for w in weights.values()]):
        return []
    # None, if it is the norm that overflows
    return [n for n, w in weights.items() if not torch.isfinite(w).all()]


def _largest(images: Any) -> float:
    """The largest absolute value of nested images; infinite if one is NaN."""
    if isinstance(images, (list, tuple)):
        return max(map(_largest, images))
    return float(images.abs().nan_to_num(inf, inf).max())


def _describe(step: dict) -> Optional[str]:
    """The passes and losses of a step, if it was left out."""
    if not step['left_out']:
        return None
    passes = ', '.join(f'{pass_.name} (width {pass_.subnet.width:g})'
                       for pass_ in step['passes'])
    losses = {name: float(value) for name, value in step['losses'].items()}
    bad = {n: value for n, value in losses.items() if not isfinite(value)}
    shown = ', '.join(f'{n}={v:.4g}' for n, v in (bad or losses).items())
    what = ('not finite'
            if bad else 'a gradient was not finite, the losses were')
    return f'in the passes {passes}, {what}: {shown}'


def _last_good(runner: Runner) -> str:
    path = find_latest_checkpoint(runner.work_dir)
    return ('There is no checkpoint yet.'
            if path is None else f'The last good checkpoint is {path}.')
