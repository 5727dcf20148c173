# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import logging
import re
from collections import Counter, defaultdict
from typing import Dict, Optional, Sequence

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from us3l_mm.registry import HOOKS

INDICATOR = re.compile('spread_(?!rand|teacher)')


@HOOKS.register_module()
class CollapseMonitorHook(Hook):
    """Detect a collapse of the embeddings.

    The spread of the embeddings in the training log is about 1 if their
    directions cover the sphere, and 0 if all images have the same one. If its
    mean over all processes and ``interval`` iterations stays below the
    threshold for ``patience`` iterations, the hook warns once or stops
    training. A resumed run counts from 0.

    Args:
        threshold (float): Lowest spread that is no collapse. Defaults to 0.15:
            collapsed runs on digits settled between 0.06 and 0.1, others above
            0.6.
        patience (int): Number of successive iterations below the threshold.
            Defaults to 100.
        begin (int): Number of iterations at the beginning that do not count,
            since the spread of a new network may be small. Defaults to 100.
        interval (int): Number of iterations to average over; the value is
            read from the device once in as many. Defaults to 10.
        action (str): 'warn', or 'stop' with an error. Defaults to 'warn'.
        indicators (sequence[str], optional): Names in the training log.
            Defaults to the spreads of all passes but those of random widths
            and of the teacher.
    """

    def __init__(self, threshold: float = 0.15, patience: int = 100,
                 begin: int = 100, interval: int = 10, action: str = 'warn',
                 indicators: Optional[Sequence[str]] = None):
        if action not in ('warn', 'stop'):
            raise ValueError(f"action is 'warn' or 'stop', got {action!r}.")
        if not 0 < threshold < 1:
            raise ValueError('threshold is a spread between 0 and 1, got '
                             f'{threshold!r}.')
        if patience < 1 or interval < 1 or begin < 0:
            raise ValueError(
                'patience and interval are at least 1, begin at least 0, got '
                f'{patience=}, {interval=} and {begin=}.')
        self.threshold, self.patience, self.begin = threshold, patience, begin
        self.interval, self.action = interval, action
        self.indicators = indicators

    def before_train(self, runner: Runner) -> None:
        """Reset the counts."""
        self._values: Dict[str, list] = defaultdict(list)
        self._under: Dict[str, int] = Counter()
        self._has_warned = False

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Record the spreads, and compare each ``interval`` of them."""
        if runner.iter < self.begin or self._has_warned:
            return
        outputs = outputs or {}
        for name in self.indicators or filter(INDICATOR.match, outputs):
            values = self._values[name]
            if name not in outputs:  # the full width trains alone
                continue
            values.append(outputs[name])
            if len(values) == self.interval:
                mean = torch.stack(values).mean()
                all_reduce(mean, 'mean')  # the same on every process
                spread = float(mean)
                values.clear()
                # Not a number is no collapse; NonFiniteHook looks after it.
                self._under[name] = (self._under[name] + self.interval
                                     if spread < self.threshold else 0)
                if self._under[name] >= self.patience:
                    self._has_warned = True
                    self._tell(runner, name, spread)
                    return

    def _tell(self, runner: Runner, name: str, spread: float) -> None:
        advice = getattr(get_ori_model(runner.model), 'against_collapse',
                         'a smaller learning rate')
        text = (
            f'The embeddings have collapsed: {name} is {spread:.3g} and has '
            f'been under {self.threshold:g} for {self._under[name]} '
            f'iterations, up to iteration {runner.iter + 1} (1 is a spread '
            'all over the sphere, 0 one direction for all images). '
            f'What may prevent it: {advice}.')
        if self.action == 'stop':
            raise RuntimeError(text)
        line = '!' * 79
        print_log(
            f'\n{line}\n{text}\nTraining goes on; CollapseMonitorHook('
            f"action='stop') would end it here.\n{line}", logger='current',
            level=logging.WARNING)
