# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Dict

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model
from torch import Tensor

from us3l_mm.registry import HOOKS


@HOOKS.register_module()
class CheckFrozenHook(Hook):
    """Stop if a frozen part of the model changes in the first epoch.

    A part is a child of the model, such as ``backbone``, of which no parameter
    trains. Its parameters and buffers before training are compared with those
    after the first epoch, bit by bit: running statistics of a norm in training
    mode move even if its parameters are frozen. A resumed run is checked over
    its own first epoch. Source: the linear evaluation of SlimCLR, arXiv
    2209.15525.
    """

    # Before a checkpoint is written
    priority = 'ABOVE_NORMAL'

    def before_train(self, runner: Runner) -> None:
        """Remember the tensors; refuse a model without frozen parts."""
        self._before = {
            name: value.clone() for name, value in frozen(runner).items()}
        if not self._before:
            raise ValueError(
                f'CheckFrozenHook found no frozen part in this '
                f'{type(get_ori_model(runner.model)).__name__}. Freeze the '
                'backbone, or remove the hook.')

    def after_train_epoch(self, runner: Runner) -> None:
        """Compare them, once."""
        before, self._before = self._before, {}
        after = frozen(runner) if before else {}
        changed = [
            name for name, value in before.items()
            if name not in after or not torch.equal(value, after[name])]
        if changed:
            raise ValueError(
                f'{len(changed)} of {len(before)} frozen tensors changed in '
                f'the first epoch, such as {changed[0]}. A frozen norm is in '
                'evaluation mode (backbone.frozen_stages with '
                'backbone.norm_eval=True, or an AllWidthsClassifier), and no '
                'hook may write into it.')


def frozen(runner: Runner) -> Dict[str, Tensor]:
    """The tensors of all parts that have parameters and train none."""
    model = get_ori_model(runner.model)
    return {
        f'{part}.{name}': value for part, child in model.named_children()
        if any(True for _ in child.parameters()) and not any(
            p.requires_grad for p in child.parameters())
        for name, value in child.state_dict().items()}
