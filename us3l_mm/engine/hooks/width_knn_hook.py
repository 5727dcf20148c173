# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import random
from contextlib import contextmanager
from time import perf_counter
from typing import Dict, Iterator, Optional, Sequence

import numpy as np
import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from us3l_mm.evaluation import calibrate, extract_features, knn_accuracy
from us3l_mm.evaluation.data import (build_loader, image_batches,
                                     labelled_batches, shuffled)
from us3l_mm.models.layers import Subnet
from us3l_mm.registry import HOOKS


@HOOKS.register_module()
class WidthKNNHook(Hook):
    """Report the kNN accuracy of several widths during training.

    Calibrates these widths on images of the bank, classifies the queries by
    their nearest neighbours in it, and writes ``knn/top1_w1.00`` and its like,
    in percent, to the log, the visualizer and the message hub. Training goes
    on as if nothing had happened: random states, modes and widths are
    restored. The measured statistics stay until the next training step, so a
    checkpoint of the same epoch has them.

    Args:
        bank_dataloader (dict): Of labelled training images, not augmented.
        query_dataloader (dict): Of the labelled images to classify.
        widths (sequence[float]): The widths. Defaults to
            (1.0, 0.75, 0.5, 0.25).
        interval (int): Epochs, or iterations, from one report to the next;
            there is always one at the end of training. Defaults to 1.
        by_epoch (bool): Whether the interval counts epochs. Defaults to True.
        k (int): Neighbours that vote. Defaults to 20.
        num_images (int): Images to calibrate with, over all processes; never
            more than there are in the bank. Defaults to 2000.
    """

    priority = 'LOW'  # before a checkpoint is saved

    def __init__(self, bank_dataloader: dict, query_dataloader: dict,
                 widths: Sequence[float] = (1.0, 0.75, 0.5, 0.25),
                 interval: int = 1, by_epoch: bool = True, k: int = 20,
                 num_images: int = 2000):
        if not isinstance(interval, int) or interval < 1:
            raise ValueError('interval is a number of epochs or iterations '
                             f'of at least 1, got {interval!r}.')
        if not widths:
            raise ValueError('widths is a list of at least one width.')
        self.widths = [Subnet.of(width).width for width in widths]
        self.interval, self.by_epoch = interval, by_epoch
        self.k, self.num_images = k, num_images
        self.cfgs = bank_dataloader, query_dataloader

    def before_train(self, runner: Runner) -> None:
        """Build the loaders; refuse what could not be evaluated later."""
        width_range = get_ori_model(runner.model).backbone.width_range
        for width in self.widths:
            Subnet.of(width).check(width_range)
        with _random_state_kept():
            self.bank, self.queries = map(build_loader, self.cfgs)
            self.calibration = shuffled(self.bank, self.num_images)
        size = len(self.bank.dataset)
        if not 1 <= self.k <= size:
            raise ValueError(
                f'WidthKNNHook: k is a number of neighbours from 1 to the '
                f'{size} images of bank_dataloader, got k={self.k}.')

    def after_train_epoch(self, runner: Runner) -> None:
        """Report every ``interval`` epochs and after the last one."""
        if self.by_epoch and (self.every_n_epochs(runner, self.interval)
                              or self.is_last_train_epoch(runner)):
            self._report(runner, runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Report every ``interval`` iterations and after the last one."""
        if not self.by_epoch and (self.every_n_train_iters(
                runner, self.interval) or self.is_last_train_iter(runner)):
            self._report(runner, runner.iter + 1)

    def _report(self, runner: Runner, step: int) -> None:
        start = perf_counter()
        with _random_state_kept():
            accuracies = self.evaluate(get_ori_model(runner.model))
        scalars = {scalar_name(w): value for w, value in accuracies.items()}
        for name, value in scalars.items():
            runner.message_hub.update_scalar(name, value)
        if is_main_process():
            runner.visualizer.add_scalars(scalars, step=step)
        values = '  '.join(f'{name}: {v:.1f}' for name, v in scalars.items())
        runner.logger.info(f'kNN after iteration {step}: {values}  '
                           f'({perf_counter() - start:.1f} s)')

    def evaluate(self, algorithm: torch.nn.Module) -> Dict[float, float]:
        """Accuracy by nearest neighbours, in percent, of each width."""
        backbone = algorithm.backbone
        preprocessor = algorithm.data_preprocessor
        calibrate(backbone, image_batches(self.calibration,
                                          preprocessor), self.widths,
                  min(self.num_images, len(self.bank.dataset)), is_share=True)
        (bank, bank_labels), (queries, query_labels) = (extract_features(
            backbone, labelled_batches(loader, preprocessor), self.widths,
            len(loader.dataset)) for loader in (self.bank, self.queries))
        accuracies = [None]
        if is_main_process():
            accuracies = [{
                width:
                knn_accuracy(bank[width], bank_labels, queries[width],
                             query_labels, self.k)
                for width in self.widths
            }]
        broadcast_object_list(accuracies)
        return accuracies[0]


def scalar_name(width: float) -> str:
    """``knn/top1_w0.50``, with more digits only where the width has them."""
    return f'knn/top1_{Subnet.of(width)}'


@contextmanager
def _random_state_kept() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
