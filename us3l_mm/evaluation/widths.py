# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The whole evaluation of a checkpoint: every width, every measure."""
import hashlib
import json
import os.path as osp
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.runner import set_random_seed
from rich.console import Console
from torch import nn

from us3l_mm.fileio import (check_writable, load_weights, save_atomically,
                            sha256)
from us3l_mm.models.layers import at_width, subnets_of
from .calibration import calibrate, has_norms
from .complexity import count_complexity
from .data import (BANK, QUERY, TRAIN, build_loader, dealt, image_batches,
                   image_size, labelled_batches, loader_cfg, shuffled)
from .features import encode, encoder, raw_pixels
from .knn import chance_accuracy, knn_accuracy
from .latency import check_device, device_name, width_latency
from .linear_probe import linear_probe
from .loading import (backbone_prefix, load_network, model_cfg,
                      untrained_network)
from .report import JSON, Report, WidthRow, resume

CALIBRATE_ON = {'augmented': TRAIN, 'plain': BANK}
TRAINED, UNTRAINED, PIXELS = 'trained', 'untrained', ('raw pixels', None)


@dataclass(frozen=True)
class Measures:
    """What to measure, and how.

    Attributes:
        knn (bool): Accuracy of nearest neighbours.
        linear (bool): Accuracy of a linear classifier.
        latency (bool): Milliseconds per batch on this device.
        baselines (bool): kNN of raw pixels and of the untrained network.
        k (int): Neighbours that vote.
        calibrate_on (str): 'plain', the images of the bank, or 'augmented',
            those of the training loader.
        num_images (int): Images to measure batch-norm statistics with.
        batch_size (int, optional): Instead of those in the config.
        device (str): Where to run.
    """

    knn: bool = True
    linear: bool = False
    latency: bool = False
    baselines: bool = False
    k: int = 20
    calibrate_on: str = 'plain'
    num_images: int = 10000
    batch_size: Optional[int] = None
    device: str = 'cpu'


class WidthEvaluation:
    """Measures widths of a checkpoint, going on where an earlier run ended.

    What can be refused is refused in the constructor, before any long work.

    Args:
        config (Config): Of the pre-training, with ``knn_bank_dataloader`` and
            ``knn_query_dataloader``.
        checkpoint (str): The file to evaluate.
        out (str): Folder of the report.
        measures (Measures): What to measure.
        trust_pickle (bool): Read a file that executes code when it is read.
            Defaults to False.
        console (Console, optional): Where to say what is going on.
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
        check_writable(osp.join(out, JSON), checkpoint)
        self.checkpoint = load_weights(checkpoint, trust_pickle)
        self.network, self.preprocessor = (
            module.to(measures.device)
            for module in load_network(config, self.checkpoint))
        self._build_loaders()
        self.input_size = image_size(self.loaders[QUERY])
        self.name = osp.splitext(osp.basename(config.filename
                                              or checkpoint))[0]
        self.settings = self._settings()

    def _build_loaders(self) -> None:
        measures = self.measures
        cfgs = {
            key: loader_cfg(self.config, key)
            for key in (BANK, QUERY, CALIBRATE_ON[measures.calibrate_on])
        }
        self.loaders = {
            key: build_loader(cfgs[key], measures.batch_size)
            for key in (BANK, QUERY)
        }
        if measures.calibrate_on == 'plain':
            self.calibration_loader = shuffled(self.loaders[BANK],
                                               measures.num_images)
            self.calibration_batch = self.loaders[BANK].batch_size
        else:
            loader = build_loader(cfgs[TRAIN], measures.batch_size)
            self.calibration_loader = dealt(loader,
                                            num_images=measures.num_images)
            self.calibration_batch = loader.batch_size
        bank_size = len(self.loaders[BANK].dataset)
        if not 1 <= measures.k <= bank_size:
            raise ValueError(
                f'k is a number of neighbours from 1 to the {bank_size} '
                f'images of {BANK}, got k={measures.k}.')

    def check(self, widths: Sequence[float]) -> List[float]:
        """``widths`` from wide to narrow, or an error."""
        for width in widths:
            with at_width(self.network, width):
                pass
        return sorted(set(map(float, widths)), reverse=True)

    def run(self, widths: Sequence[float],
            save_checkpoint: Optional[str] = None) -> Report:
        """Measure what is not yet measured; every finished width is saved.

        Args:
            widths (sequence[float]): The widths.
            save_checkpoint (str, optional): Also write the checkpoint with
                the statistics of all these widths to this file.
        """
        widths = self.check(widths)
        if save_checkpoint is not None:
            check_writable(save_checkpoint, self.path)
        report = self._report(widths)
        trained = [w for w in widths if self._lacks(report.row(w))]
        untrained = [
            w for w in widths
            if self.measures.baselines and report.row(w).untrained_knn is None
        ]
        to_calibrate = trained if save_checkpoint is None else widths
        if to_calibrate:
            self.calibrate(self.network, to_calibrate)
        if save_checkpoint is not None:
            self._save_checkpoint(save_checkpoint)
        if self.measures.latency and is_main_process():
            self._latencies(report, widths)
        if trained or untrained:
            self._accuracies(report, trained, untrained)
        self._save(report)
        return report

    def calibrate(self, network: nn.Module, widths: Sequence[float],
                  progress: str = 'Calibrating') -> int:
        """Measure the statistics of ``widths``; the same in every run."""
        if not has_norms(network):
            self.console.print('There are no batch norms to calibrate.')
            return 0
        set_random_seed(0)  # of the augmentation
        return calibrate(
            network, image_batches(self.calibration_loader, self.preprocessor),
            widths,
            min(self.measures.num_images,
                len(self.calibration_loader.dataset)), progress, is_share=True)

    def _save_checkpoint(self, path: str) -> None:
        if is_main_process():
            state = self.checkpoint['state_dict']
            prefix = backbone_prefix(state)
            state = {
                **state, **{
                    prefix + key: value.cpu()
                    for key, value in self.network.state_dict().items()
                }
            }
            save_atomically(dict(self.checkpoint, state_dict=state), path)

    def _lacks(self, row: WidthRow) -> bool:
        return ((self.measures.knn and row.knn is None)
                or (self.measures.linear and row.linear is None))

    def _report(self, widths: Sequence[float]) -> Report:
        """The report of an earlier run or a new one, with a row per width."""
        shared = [None]
        if is_main_process():
            shared[0], notice = resume(self.out, self.name, self.settings)
            if notice:
                self.console.print(notice, soft_wrap=True)
        broadcast_object_list(shared)
        report = shared[0]
        report.name = self.name
        new = [w for w in widths if report.row(w) is None]
        sizes = count_complexity(self.network, new, self.input_size)
        for width, size in sizes.items():
            report.rows.append(
                WidthRow(width,
                         self.network.feature_channels(width)[-1], size.params,
                         size.macs / 1e9, (size.reference or size).macs / 1e9))
        return report

    def _latencies(self, report: Report, widths: Sequence[float]) -> None:
        device = device_name(self.measures.device)
        if report.device != device:  # figures of another are not comparable
            report.device = device
            for row in report.rows:
                row.latency_ms = None
        for width in widths:
            row = report.row(width)
            if row.latency_ms is None:
                with self.console.status(f'Timing width {width:g}'):
                    row.latency_ms = width_latency(self.network, width,
                                                   self.input_size)
                self._save(report)

    def _accuracies(self, report: Report, trained: Sequence[float],
                    untrained: Sequence[float]) -> None:
        """One pass over bank and queries for all; then width by width."""
        encoders = {(TRAINED, w): encoder(self.network, w) for w in trained}
        if untrained:
            initial = untrained_network(self.config).to(self.measures.device)
            self.calibrate(initial, untrained, 'Calibrating (untrained)')
            encoders.update({(UNTRAINED, w): encoder(initial, w)
                             for w in untrained})
        if self.measures.baselines and report.raw_pixels is None:
            encoders[PIXELS] = raw_pixels
        bank, bank_labels = self._encode(encoders, BANK)
        queries, query_labels = self._encode(encoders, QUERY)
        if not is_main_process():
            return
        report.chance = chance_accuracy(query_labels)
        for name in encoders:
            self._classify(report, name, bank.pop(name), bank_labels,
                           queries.pop(name), query_labels)
            self._save(report)

    def _classify(self, report: Report, name: tuple, *data:
                  np.ndarray) -> None:
        """Enter the accuracies of one set of features into ``report``."""
        kind, width = name
        row = None if width is None else report.row(width)
        title = kind if width is None else f'{kind}, width {width:g}'
        if kind != TRAINED or (self.measures.knn and row.knn is None):
            with self.console.status(f'Nearest neighbours ({title})'):
                accuracy = knn_accuracy(*data, self.measures.k)
            if kind == TRAINED:
                row.knn = accuracy
            elif kind == UNTRAINED:
                row.untrained_knn = accuracy
            else:
                report.raw_pixels = accuracy
        if kind == TRAINED and self.measures.linear and row.linear is None:
            with self.console.status(f'Linear probe ({title})'):
                row.linear, row.linear_decay = linear_probe(*data)

    def _encode(self, encoders: dict,
                key: str) -> Tuple[Dict[tuple, np.ndarray], np.ndarray]:
        loader = self.loaders[key]
        return encode(encoders, labelled_batches(loader, self.preprocessor),
                      len(loader.dataset),
                      f'Features of the {key.split("_")[1]}')

    def _save(self, report: Report) -> None:
        if is_main_process():
            report.save(self.out)

    def _settings(self) -> dict:
        """Everything that accuracies depend on, to compare two runs by."""
        measures = self.measures
        return dict(
            checkpoint_sha256=sha256(self.path), k=measures.k,
            calibrate_on=measures.calibrate_on, num_images=measures.num_images,
            batch_size=self.calibration_batch,
            model=_digest(model_cfg(self.config)), data=_digest([
                self.config[key].dataset
                for key in (BANK, QUERY, CALIBRATE_ON[measures.calibrate_on])
            ]))


def default_widths(network: nn.Module, count: int) -> List[float]:
    """``count`` widths from the lowest to the highest that ``network`` has.

    A network with switchable norms has those of its list.
    """
    if count < 1:
        raise ValueError(f'The number of widths is at least 1, got {count}.')
    subnets = subnets_of(network)
    if subnets is not None:
        return [subnet.width for subnet in subnets]
    low, high = network.width_range
    return sorted(
        {high - (high - low) * i / max(count - 1, 1)
         for i in range(count)})


def _digest(config) -> str:
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
