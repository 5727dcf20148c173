# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Optional, Sequence

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model
from torch import nn

from us3l_mm.models.losses import GroupDecay
from us3l_mm.registry import HOOKS


@HOOKS.register_module()
class GroupRegHook(Hook):
    r"""Replace weight decay by US3L's group regularisation.

    Installs a :class:`~us3l_mm.models.losses.GroupDecay` at the optimizer and
    refreshes its coefficients once an epoch: plain decay up to
    ``warmup_epochs``, then a linear ramp that ends at half of training.
    Source: US3L, arXiv 2303.06870, group regularisation.

    Args:
        warmup_epochs (int): Epochs of plain decay before the ramp. Defaults
            to 0.
        skip (sequence[str]): Modules that do not decay, besides the teacher.
            Defaults to ('feature_distiller', ).
        clear_weight_decay (bool): Whether to set the optimizer's weight decay
            of these parameters to 0, and log it, instead of refusing to run
            beside it. Defaults to False.
        **decay: Arguments of :class:`~us3l_mm.models.losses.GroupDecay`.
            ``lam`` is half of the weight decay it replaces, and 0 leaves that
            of the optimizer as it is; ``decoupled=True`` is for AdamW.
    """

    def __init__(self, warmup_epochs: int = 0,
                 skip: Sequence[str] = ('feature_distiller', ),
                 clear_weight_decay: bool = False, **decay):
        # Refuse arguments now and not when training begins.
        GroupDecay([('', nn.Parameter(torch.zeros(1)))], **decay)
        self.warmup_epochs, self.skip = warmup_epochs, tuple(skip)
        self.clear_weight_decay, self._arguments = clear_weight_decay, decay

    def before_train(self, runner: Runner) -> None:
        """Install the decay; refuse weight decay beside it."""
        self._decay: Optional[GroupDecay] = None
        if self._arguments.get('lam') == 0:
            return
        model = get_ori_model(runner.model)
        named = [(name, p) for name, p in model.named_parameters()
                 if p.requires_grad and name.split('.')[0] not in self.skip]
        self._check_weight_decay(runner.optim_wrapper.optimizer, named)
        self._decay = GroupDecay(named, **self._arguments)
        runner.optim_wrapper.regularise(self._decay)
        self._epoch = None  # whose coefficients it has

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: Optional[dict] = None) -> None:
        """Refresh the coefficients at the beginning of an epoch.

        Epochs are counted in iterations, to be the same in an iteration-based
        loop.
        """
        epoch_length = len(runner.train_dataloader)
        epoch = runner.iter // epoch_length
        if self._decay is not None and epoch != self._epoch:
            self._epoch = epoch
            half = runner.max_iters / epoch_length / 2
            self._decay.set_ramp(ramp(epoch, self.warmup_epochs, half))

    def _check_weight_decay(self, optimizer, named) -> None:
        covered = {id(p): name for name, p in named}
        for group in optimizer.param_groups:
            decayed = [
                covered[id(p)] for p in group['params'] if id(p) in covered]
            if not group.get('weight_decay') or not decayed:
                continue
            if not self.clear_weight_decay:
                raise ValueError(
                    'GroupRegHook replaces weight decay, and the optimizer '
                    f'has weight_decay={group["weight_decay"]} on '
                    f'{len(decayed)} of its parameters, such as {decayed[0]}. '
                    'Set optim_wrapper.optimizer.weight_decay=0, or let the '
                    'hook clear it with clear_weight_decay=True.')
            print_log(
                f'GroupRegHook: weight_decay={group["weight_decay"]} of '
                f'{len(group["params"])} parameters set to 0.',
                logger='current')
            group['weight_decay'] = 0.0


def ramp(epoch: float, start: float, end: float) -> float:
    """0 before ``start``, linear until ``end``, and 1 from there on."""
    if epoch < start:
        return 0.0
    return 1.0 if epoch >= end else (epoch - start) / (end - start)
