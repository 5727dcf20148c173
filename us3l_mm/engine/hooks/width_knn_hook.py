# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from time import perf_counter
from typing import Dict, Optional, Sequence

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from us3l_mm.engine.resuming.random_states import seeded
from us3l_mm.evaluation import calibrate, extract_features, knn_accuracy
from us3l_mm.evaluation.data import (build_loader, image_batches,
                                     labelled_batches, shuffled)
from us3l_mm.models.layers import Subnet, SubnetLike, check_subnets
from us3l_mm.registry import HOOKS
from .compile_hook import uncompiled


@HOOKS.register_module()
class WidthKNNHook(Hook):
    """Report the kNN accuracy of several sub-networks during training.

    Calibrates them on images of the bank, classifies the queries by their
    nearest neighbours in it, and writes the accuracies in percent to the log,
    the visualizer and the message hub, as ``knn/top1_w0.50``. Training is not
    affected: random states, modes and the sub-network of each layer are
    restored. The measured statistics stay until the next training step, so a
    checkpoint of the same epoch has them.

    Args:
        bank_dataloader (dict): The loader of labelled training images, not
            augmented.
        query_dataloader (dict): The loader of the labelled images to
            classify.
        widths (sequence): The widths, or other sub-networks. Defaults to
            (1.0, 0.75, 0.5, 0.25).
        interval (int): Number of epochs, or iterations, between two reports;
            there is always one at the end of training. Defaults to 1.
        by_epoch (bool): Whether the interval counts epochs. Defaults to True.
        k (int): Number of neighbours that vote. Defaults to 20.
        num_images (int): Number of images to calibrate with, over all
            processes, at most all of the bank. Defaults to 2000.
    """

    priority = 'LOW'  # before a checkpoint is saved

    def __init__(self, bank_dataloader: dict, query_dataloader: dict,
                 widths: Sequence[SubnetLike] = (1.0, 0.75, 0.5, 0.25),
                 interval: int = 1, by_epoch: bool = True, k: int = 20,
                 num_images: int = 2000):
        if not isinstance(interval, int) or interval < 1:
            raise ValueError('interval is a number of epochs or iterations '
                             f'of at least 1, got {interval!r}.')
        if not widths:
            raise ValueError('widths is a list of at least one width.')
        self.subnets = [Subnet.of(width) for width in widths]
        self.interval, self.by_epoch = interval, by_epoch
        self.k, self.num_images = k, num_images
        self.cfgs = bank_dataloader, query_dataloader

    def before_train(self, runner: Runner) -> None:
        """Build the loaders; raise if something could not be evaluated."""
        check_subnets(get_ori_model(runner.model).backbone, self.subnets)
        with seeded(0):
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
        with seeded(0), uncompiled(runner):
            accuracies = self.evaluate(get_ori_model(runner.model))
        scalars = {f'knn/top1_{s}': value for s, value in accuracies.items()}
        for name, value in scalars.items():
            runner.message_hub.update_scalar(name, value)
        if is_main_process():
            runner.visualizer.add_scalars(scalars, step=step)
        values = '  '.join(f'{name}: {v:.1f}' for name, v in scalars.items())
        runner.logger.info(f'kNN after iteration {step}: {values}  '
                           f'({perf_counter() - start:.1f} s)')

    def evaluate(self, algorithm: torch.nn.Module) -> Dict[Subnet, float]:
        """Accuracy of each sub-network by kNN, in percent."""
        backbone = algorithm.backbone
        preprocessor = algorithm.data_preprocessor
        calibrate(backbone, image_batches(self.calibration,
                                          preprocessor), self.subnets,
                  min(self.num_images, len(self.bank.dataset)), is_share=True)
        (bank, bank_labels), (queries, query_labels) = (extract_features(
            backbone, labelled_batches(loader, preprocessor), self.subnets,
            len(loader.dataset)) for loader in (self.bank, self.queries))
        accuracies = [None]
        if is_main_process():
            accuracies = [{
                subnet:
                knn_accuracy(bank[subnet], bank_labels, queries[subnet],
                             query_labels, self.k)
                for subnet in self.subnets
            }]
        broadcast_object_list(accuracies)
        return accuracies[0]
