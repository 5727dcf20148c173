# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The whole evaluation of a checkpoint: all sub-networks, all measures."""
import hashlib
import json
import os.path as osp
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.runner import set_random_seed
from rich.console import Console
from torch import nn

from us3l_mm.fileio import (check_writable, load_weights, save_atomically,
                            sha256)
from us3l_mm.models.layers import (Subnet, SubnetLike, check_subnets,
                                   subnet_list, subnets_of)
from .calibration import calibrate, check_momentum
from .complexity import count_complexity
from .data import (BANK, QUERY, TRAIN, build_loader, dealt, image_batches,
                   image_size, labelled_batches, loader_cfg, shuffled)
from .features import IDENTITY, encode, encoder, raw_pixels
from .knn import chance_accuracy, check_k, knn_accuracy
from .latency import check_device, device_name, width_latency
from .linear_probe import linear_probe
from .loading import (backbone_prefix, load_source, model_cfg,
                      untrained_network)
from .overlap import Identities, copies
from .report import JSON, Report, WidthRow, resume

CALIBRATE_ON = {'augmented': TRAIN, 'plain': BANK}
TRAINED, UNTRAINED, PIXELS = 'trained', 'untrained', 'raw pixels'
KNN_ENTRY = {TRAINED: 'knn', UNTRAINED: 'untrained_knn', PIXELS: 'raw_pixels'}


@dataclass(frozen=True)
class Measures:
    """What to measure, and how.

    Attributes:
        knn (bool): Whether to measure the accuracy of nearest neighbours.
        linear (bool): Whether to measure the accuracy of a linear classifier.
        latency (bool): Whether to measure milliseconds per image on this
            device.
        baselines (bool): Whether to measure kNN of raw pixels and of the
            untrained network.
        k (int): Number of neighbours that vote.
        calibrate_on (str): 'plain' for the images of the bank, or 'augmented'
            for those of the training loader.
        num_images (int): Number of images to calibrate with.
        momentum (float, optional): See
            :func:`~us3l_mm.evaluation.calibration.calibrate`.
        batch_size (int, optional): Replaces the batch sizes of the config.
        device (str): The device to run on.
    """

    knn: bool = True
    linear: bool = False
    latency: bool = False
    baselines: bool = False
    k: int = 20
    calibrate_on: str = 'plain'
    num_images: int = 10000
    momentum: Optional[float] = None
    batch_size: Optional[int] = None
    device: str = 'cpu'


class WidthEvaluation:
    """Measures sub-networks of a checkpoint; an interrupted run is continued.

    Arguments are checked in the constructor, before any long work.

    Args:
        config (Config): The config of the pre-training, with
            ``knn_bank_dataloader`` and ``knn_query_dataloader``.
        checkpoint (str): The file to evaluate.
        out (str): The folder of the report.
        measures (Measures): What to measure.
        trust_pickle (bool): Whether to read a file that executes code when it
            is read. Defaults to False.
        console (Console, optional): The console for messages and progress.
    """

    def __init__(self, config: Config, checkpoint: str, out: str,
                 measures: Measures, trust_pickle: bool = False,
                 console: Optional[Console] = None):
        self.config, self.out, self.measures = config, out, measures
        self.path = checkpoint
        self.console = console or Console()
        if measures.calibrate_on not in CALIBRATE_ON:
            raise ValueError(f'calibrate_on is one of {sorted(CALIBRATE_ON)}, '
                             f'got {measures.calibrate_on!r}.')
        check_device(measures.device)
        check_momentum(measures.momentum)
        check_writable(osp.join(out, JSON), checkpoint)
        self.checkpoint = load_weights(checkpoint, trust_pickle)
        source = load_source(self.checkpoint, config, path=checkpoint)
        self.network = source.backbone.to(measures.device)
        assert source.preprocessor is not None  # it comes with the config
        self.preprocessor = source.preprocessor.to(measures.device)
        calibrate_on = CALIBRATE_ON[measures.calibrate_on]
        self.loaders = {
            key: build_loader(loader_cfg(config, key), measures.batch_size)
            for key in (BANK, QUERY, calibrate_on)}
        if measures.knn or measures.baselines:
            check_k(measures.k, len(self.loaders[BANK].dataset),
                    f'images of {BANK}')
        deal = shuffled if calibrate_on == BANK else dealt
        self.calibration_loader = deal(self.loaders[calibrate_on],
                                       measures.num_images)
        self.input_size = image_size(self.loaders[QUERY])
        self.name = osp.splitext(osp.basename(config.filename
                                              or checkpoint))[0]
        self.settings = self._settings()

    def run(self, subnets: Sequence[SubnetLike],
            save_checkpoint: Optional[str] = None) -> Report:
        """Measure what is missing, saving the report after each sub-network.

        Args:
            subnets (sequence): The sub-networks, or their widths.
            save_checkpoint (str, optional): The file to write the checkpoint
                to with the statistics of all these sub-networks. Defaults to
                None for no file.
        """
        wanted = subnet_list(set(map(Subnet.of, subnets)))
        check_subnets(self.network, wanted)
        if save_checkpoint is not None:
            check_writable(save_checkpoint, self.path)
        report = self._report(wanted)
        rows, measures = [report.row(s) for s in wanted], self.measures
        trained = [
            row.subnet for row in rows
            if (measures.knn and row.knn is None) or (
                measures.linear and row.linear is None)]
        untrained = [
            row.subnet for row in rows
            if measures.baselines and row.untrained_knn is None]
        to_calibrate = trained if save_checkpoint is None else wanted
        if to_calibrate:
            self.calibrate(self.network, to_calibrate)
        if save_checkpoint is not None and is_main_process():
            self._save_checkpoint(save_checkpoint)
        if measures.latency and is_main_process():
            self._latencies(report, rows)
        if trained or untrained:
            self._accuracies(report, trained, untrained)
        self._save(report)
        return report

    def calibrate(self, network: nn.Module, subnets: Sequence[Subnet],
                  progress: str = 'Calibrating') -> int:
        """Measure the statistics of ``subnets``; the same in every run."""
        set_random_seed(0)  # of the augmentation
        seen = calibrate(
            network, image_batches(self.calibration_loader,
                                   self.preprocessor), subnets,
            min(self.measures.num_images,
                len(self.calibration_loader.dataset)), progress, is_share=True,
            momentum=self.measures.momentum)
        if not seen:
            self.console.print('There are no batch norms to calibrate.')
        return seen

    def _save_checkpoint(self, path: str) -> None:
        state = dict(self.checkpoint['state_dict'])
        prefix = backbone_prefix(state)
        for key, value in self.network.state_dict().items():
            state[prefix + key] = value.cpu()
        save_atomically(dict(self.checkpoint, state_dict=state), path)

    def _report(self, subnets: Sequence[Subnet]) -> Report:
        """The report of an earlier run or a new one, with rows for all."""
        report = Report(self.name, self.settings)
        if is_main_process():
            report, notice = resume(self.out, self.name, self.settings)
            if notice:
                self.console.print(notice, soft_wrap=True)
        shared = [report]
        broadcast_object_list(shared)
        report = shared[0]
        report.name = self.name
        known = {row.subnet for row in report.rows}
        new = [subnet for subnet in subnets if subnet not in known]
        sizes = count_complexity(self.network, new, self.input_size)
        for subnet, size in sizes.items():
            report.rows.append(
                WidthRow(subnet,
                         self.network.feature_channels(subnet.width)[-1],
                         size.params, size.macs / 1e9,
                         (size.reference or size).macs / 1e9))
        return report

    def _latencies(self, report: Report, rows: Sequence[WidthRow]) -> None:
        device = device_name(self.measures.device)
        if report.device != device:  # figures of another are not comparable
            report.device = device
            for row in report.rows:
                row.latency_ms = None
        for row in rows:
            if row.latency_ms is None:
                with self.console.status(f'Timing {row.subnet}'):
                    row.latency_ms = width_latency(self.network, row.subnet,
                                                   self.input_size)
                self._save(report)

    def _accuracies(self, report: Report, trained: Sequence[Subnet],
                    untrained: Sequence[Subnet]) -> None:
        """One pass over bank and queries, then one sub-network at a time."""
        encoders: Dict[Tuple[str, Optional[Subnet]], Callable] = {
            (TRAINED, s): encoder(self.network, s) for s in trained}
        if untrained:
            initial = untrained_network(self.config).to(self.measures.device)
            self.calibrate(initial, untrained, 'Calibrating (untrained)')
            encoders.update({
                (UNTRAINED, s): encoder(initial, s) for s in untrained})
        if self.measures.baselines and report.raw_pixels is None:
            encoders[PIXELS, None] = raw_pixels
        (bank, bank_labels), (queries, query_labels) = (encode(
            encoders, labelled_batches(self.loaders[key], self.preprocessor),
            len(self.loaders[key].dataset),
            f'Features of the {key.split("_")[1]}') for key in (BANK, QUERY))
        if not is_main_process():
            return
        report.chance = chance_accuracy(query_labels)
        identities = bank[IDENTITY], queries[IDENTITY]
        report.overlap = int((copies(*identities) > 0).sum())
        for name in encoders:
            self._classify(report, *name, (bank.pop(name), bank_labels,
                                           queries.pop(name), query_labels),
                           identities)
            self._save(report)

    def _classify(self, report: Report, kind: str, subnet: Optional[Subnet],
                  data: Tuple[np.ndarray, np.ndarray, np.ndarray,
                              np.ndarray], identities: Identities) -> None:
        """Enter the accuracies of one set of features into ``report``."""
        title = kind if subnet is None else f'{kind}, {subnet}'
        entry: Any = report if subnet is None else report.row(subnet)
        name = KNN_ENTRY[kind]
        if getattr(entry, name) is None and (kind != TRAINED
                                             or self.measures.knn):
            with self.console.status(f'Nearest neighbours ({title})'):
                setattr(
                    entry, name,
                    knn_accuracy(*data, self.measures.k,
                                 identities=identities))
        if kind == TRAINED and self.measures.linear and entry.linear is None:
            with self.console.status(f'Linear probe ({title})'):
                entry.linear, entry.linear_decay = linear_probe(
                    *data, identities=identities)

    def _save(self, report: Report) -> None:
        if is_main_process():
            report.save(self.out)

    def _settings(self) -> dict:
        """Everything that accuracies depend on, to compare two runs."""
        measures = self.measures
        keys = BANK, QUERY, CALIBRATE_ON[measures.calibrate_on]
        return dict(checkpoint_sha256=sha256(
            self.path), k=measures.k, calibrate_on=measures.calibrate_on,
                    num_images=measures.num_images, momentum=measures.momentum,
                    batch_size=self.loaders[keys[-1]].batch_size,
                    model=_digest(model_cfg(self.config)), data=_digest([
                        self.config[key].dataset for key in keys]))


def default_subnets(network: nn.Module, count: int) -> List[Subnet]:
    """``count`` widths of ``network``, evenly from its highest to its lowest.

    A network with a fixed list of sub-networks has those of its list.
    """
    if count < 1:
        raise ValueError(f'The number of widths is at least 1, got {count}.')
    subnets = subnets_of(network)
    if subnets is not None:
        return subnets
    low, high = network.width_range
    return subnet_list({
        Subnet(high - (high - low) * i / max(count - 1, 1))
        for i in range(count)})


def _digest(config) -> str:
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
