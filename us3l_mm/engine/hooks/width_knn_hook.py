# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from time import perf_counter
from typing import Dict, List, Sequence

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from us3l_mm.engine.random_states import seeded
from us3l_mm.evaluation import calibrate, encode, encoder, knn_accuracy
from us3l_mm.evaluation.data import (build_loader, check_num_images,
                                     image_batches, labelled_batches, shuffled)
from us3l_mm.evaluation.features import IDENTITY
from us3l_mm.evaluation.knn import check_k
from us3l_mm.evaluation.overlap import copies
from us3l_mm.evaluation.spool import check_space
from us3l_mm.models.layers import Subnet, SubnetLike, check_subnets
from us3l_mm.registry import HOOKS
from .compile_hook import uncompiled
from .periodic_hook import PeriodicHook


@HOOKS.register_module()
class WidthKNNHook(PeriodicHook):
    """Report the kNN accuracy of several sub-networks during training.

    The hook calibrates them on images of the bank, classifies the queries by
    their nearest neighbours in it, and writes the accuracies in percent to the
    log, the visualizer and the message hub, as ``knn/top1_w0.50``. Training is
    not affected: random states, modes and the sub-network of each layer are
    restored. A checkpoint of the same epoch has the measured statistics. An
    image that is in both loaders is left out of its own neighbours, and the
    log says how many there are.

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

    def __init__(self, bank_dataloader: dict, query_dataloader: dict,
                 widths: Sequence[SubnetLike] = (1.0, 0.75, 0.5,
                                                 0.25), interval: int = 1,
                 by_epoch: bool = True, k: int = 20, num_images: int = 2000):
        super().__init__(interval, by_epoch)
        if not widths:
            raise ValueError('widths is a list of at least one width.')
        self.subnets = [Subnet.of(width) for width in widths]
        check_num_images(num_images)
        self.k, self.num_images = k, num_images
        self.cfgs = bank_dataloader, query_dataloader
        self.overlap = 0  # in the main process

    def before_train(self, runner: Runner) -> None:
        """Build the loaders; raise if something could not be evaluated."""
        backbone = get_ori_model(runner.model).backbone
        check_subnets(backbone, self.subnets)
        with seeded(0):
            self.bank, self.queries = map(build_loader, self.cfgs)
            self.calibration = shuffled(self.bank, self.num_images)
        images = len(self.bank.dataset)
        check_k(self.k, images, 'images of bank_dataloader')
        check_space(images, (backbone.feature_channels(subnet.width)[-1]
                             for subnet in self.subnets))

    def act(self, runner: Runner, iterations: int) -> None:
        """Report the accuracies."""
        start = perf_counter()
        with seeded(0), uncompiled(runner):
            accuracies = self.evaluate(get_ori_model(runner.model))
        scalars = {f'knn/top1_{s}': value for s, value in accuracies.items()}
        for name, value in scalars.items():
            runner.message_hub.update_scalar(name, value)
        if is_main_process():
            runner.visualizer.add_scalars(scalars, step=iterations)
        values = '  '.join(f'{name}: {v:.1f}' for name, v in scalars.items())
        runner.logger.info(f'kNN after iteration {iterations}: {values}  '
                           f'({perf_counter() - start:.1f} s)')
        if self.overlap:  # MMEngine logs the same warning once
            runner.logger.warning(
                f'{self.overlap:,} images of query_dataloader are also in '
                'bank_dataloader; each is left out of its own neighbours.')

    def evaluate(self, algorithm: torch.nn.Module) -> Dict[Subnet, float]:
        """Accuracy of each sub-network by kNN, in percent."""
        backbone = algorithm.backbone
        preprocessor = algorithm.data_preprocessor
        calibrate(backbone, image_batches(self.calibration,
                                          preprocessor), self.subnets,
                  min(self.num_images, len(self.bank.dataset)), is_share=True)
        encoders = {s: encoder(backbone, s) for s in self.subnets}
        (bank, bank_labels), (queries, query_labels) = (encode(
            encoders, labelled_batches(loader, preprocessor),
            len(loader.dataset)) for loader in (self.bank, self.queries))
        accuracies: List[Dict[Subnet, float]] = [{}]
        if is_main_process():
            identities = bank[IDENTITY], queries[IDENTITY]
            self.overlap = int((copies(*identities) > 0).sum())
            device = next(backbone.parameters()).device
            accuracies = [{
                subnet:
                knn_accuracy(bank.pop(subnet), bank_labels,
                             queries.pop(subnet), query_labels, self.k,
                             identities=identities, device=device)
                for subnet in encoders}]
        broadcast_object_list(accuracies)
        return accuracies[0]
