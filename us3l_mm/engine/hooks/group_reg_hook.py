# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Dict, Optional, Sequence

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

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
        lam, alpha, mode, groups, base_pass_skip, value_interval, decoupled:
            Arguments of :class:`~us3l_mm.models.losses.GroupDecay`. ``lam``
            is half of the weight decay it replaces, and 0 leaves that of the
            optimizer as it is; ``decoupled=True`` is for AdamW.
        warmup_epochs (int): Epochs of plain decay before the ramp. Defaults
            to 0.
        group_dims (dict[int, int]): By number of dimensions of a parameter,
            the dimension that is grouped. Defaults to {1: 0, 4: 0}, the
            output channels of convolutions and norms; {2: 1} for a ViT, the
            input features of linear layers.
        skip (sequence[str]): Modules that are not decayed, besides the
            teacher. Defaults to ('feature_distiller', ).
        clear_weight_decay (bool): Whether to set the optimizer's weight decay
            of these parameters to 0, saying so, instead of refusing to run
            beside it. Defaults to False.
    """

    def __init__(self, lam: float = 5e-5, alpha: float = 0.05,
                 mode: str = 'linear', groups: int = 8, warmup_epochs: int = 0,
                 group_dims: Optional[Dict[int, int]] = None,
                 skip: Sequence[str] = ('feature_distiller', ),
                 base_pass_skip: Sequence[str] = ('predictor', ),
                 clear_weight_decay: bool = False, value_interval: int = 10,
                 decoupled: bool = False):
        if lam < 0:
            raise ValueError(f'lam is not negative, got {lam}.')
        for name, value in (('groups', groups), ('value_interval',
                                                 value_interval)):
            if value < 1:
                raise ValueError(f'{name} is at least 1, got {value}.')
        most = 1 / max(groups - 1, 1) if mode == 'linear' else 1.0
        if not 0 <= alpha <= most:
            raise ValueError(
                f'alpha is in [0, {most:.4g}] for mode={mode!r} and '
                f'{groups} groups, else a group would grow; got {alpha}.')
        self.warmup_epochs = warmup_epochs
        self.skip, self.clear_weight_decay = tuple(skip), clear_weight_decay
        self._kwargs = dict(lam=lam, alpha=alpha, mode=mode, groups=groups,
                            group_dims=group_dims, decoupled=decoupled,
                            base_pass_skip=base_pass_skip,
                            value_interval=value_interval)

    def before_train(self, runner: Runner) -> None:
        """Install the decay; refuse weight decay beside it."""
        self._decay = None
        if not self._kwargs['lam']:
            return
        named = [(name, p)
                 for name, p in get_ori_model(runner.model).named_parameters()
                 if p.requires_grad and name.split('.')[0] not in self.skip]
        self._check_weight_decay(runner.optim_wrapper.optimizer, named)
        self._decay = GroupDecay(named, **self._kwargs)
        runner.optim_wrapper.regularise(self._decay)
        self._epoch = None  # whose coefficients it has

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: Optional[dict] = None) -> None:
        """Refresh the coefficients where a new epoch begins.

        Epochs are counted in iterations, so that they mean the same in an
        iteration-based loop.
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
                covered[id(p)] for p in group['params'] if id(p) in covered
            ]
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
    """0 before ``start``, whatever ``end`` is; then linear, 1 from ``end`` on.
    """
    if epoch < start:
        return 0.0
    return 1.0 if epoch >= end else (epoch - start) / (end - start)
