# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The whole evaluation of a checkpoint: all sub-networks, all measures."""
import hashlib
import json
import os.path as osp
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import (broadcast_object_list, get_rank, get_world_size,
                           is_main_process)
from mmengine.runner import set_random_seed
from rich.console import Console
from torch import nn

from us3l_mm.fileio import (check_writable, load_weights, save_atomically,
                            sha256)
from us3l_mm.models.layers import (FULL, GATED, Subnet, SubnetLike,
                                   check_subnets, subnet_list, subnets_of)
from .calibration import calibrate, check_momentum
from .complexity import count_complexity
from .data import (BANK, QUERY, TRAIN, Images, build_loader, dealt,
                   image_batches, image_size, labelled_batches, loader_cfg,
                   shuffled)
from .features import IDENTITY, encode, encoder, raw_pixels
from .gates import (GateTally, calibrate_threshold, check_gates, threshold_of)
from .knn import chance_accuracy, check_k, check_metric, knn_accuracy
from .latency import check_device, device_name, width_latency
from .linear_probe import linear_probe, linear_run
from .loading import (backbone_prefix, load_source, model_cfg,
                      untrained_network, with_dense_network)
from .overlap import Identities, copies
from .report import JSON, Report, RowKey, WidthRow, resume
from .spool import check_space

# By which share of a budget the images of the bank may miss it, so that other
# images are within 1 %.
TOLERANCE = 0.002
# Queries whose mean latency that of a gated network is.
TIMED_IMAGES = 8
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
        metric (str): Of their distance, 'cosine' or 'euclidean'.
        linear_runs (int): Number of linear classifiers on training images
            drawn at random, see
            :func:`~us3l_mm.evaluation.linear_probe.linear_run`.
        calibrate_on (str): 'plain' for the images of the bank, or 'augmented'
            for those of the training loader.
        num_images (int): Number of images to calibrate with.
        momentum (float, optional): See
            :func:`~us3l_mm.evaluation.calibrate`.
        batch_size (int, optional): Replaces the batch sizes of the config.
        device (str): The device to run on.
    """

    knn: bool = True
    linear: bool = False
    latency: bool = False
    baselines: bool = False
    k: int = 20
    metric: str = 'cosine'
    linear_runs: int = 0
    calibrate_on: str = 'plain'
    num_images: int = 10000
    momentum: Optional[float] = None
    batch_size: Optional[int] = None
    device: str = 'cpu'

    @property
    def accuracies(self) -> bool:
        """Whether accuracies are measured."""
        return self.knn or self.linear or self.baselines


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
        check_metric(measures.metric)
        if measures.linear_runs < 0:
            raise ValueError('linear_runs is a number of classifiers, got '
                             f'{measures.linear_runs}.')
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
        # Those of rows with a network of their own.
        self.networks: Dict[RowKey, nn.Module] = {}
        separate = with_dense_network(self.checkpoint)
        if separate is not None:
            self.networks[FULL, None] = load_source(
                separate, config, path=checkpoint).backbone.to(measures.device)

    def run(
        self, subnets: Sequence[SubnetLike],
        save_checkpoint: Optional[str] = None, budgets: Sequence[float] = ()
    ) -> Report:
        """Measure what is missing, saving the report after each row.

        Args:
            subnets (sequence): The sub-networks, or their widths.
            save_checkpoint (str, optional): The file to write the checkpoint
                to with the statistics of all these sub-networks, and with
                threshold and statistics of the budget. Defaults to None for
                no file.
            budgets (sequence[float]): Shares of the dense network's
                multiply-accumulates. For each the gated network has a row
                with the threshold that meets it on the images of the bank.
                Defaults to none.
        """
        wanted = subnet_list(set(map(Subnet.of, subnets)))
        check_subnets(self.network, wanted)
        self._check_budgets(budgets, save_checkpoint)
        if save_checkpoint is not None:
            check_writable(save_checkpoint, self.path)
        keys: List[RowKey] = [(subnet, None) for subnet in wanted]
        keys += [(GATED, budget) for budget in budgets]
        report = self._report(keys)
        rows, measures = [report.row(*key) for key in keys], self.measures
        device = device_name(measures.device)
        if measures.latency and report.device != device:
            report.device = device
            for row in report.rows:  # those of another are not comparable
                row.latency_ms = None
        trained = [row for row in rows if self._lacks(row)]
        untrained = [
            row.subnet for row in rows if measures.baselines
            and not self._has_gates(row.subnet) and row.untrained_knn is None]
        self._check_space(report, trained, untrained)
        saving = save_checkpoint is not None
        to_calibrate = [
            row.subnet for row in (rows if saving else trained)
            if row.budget is None]
        if to_calibrate:
            self.calibrate(self.network, to_calibrate)
        for row in rows:
            untimed = measures.latency and row.latency_ms is None
            if row.budget is not None and (saving or untimed
                                           or row in trained):
                self._meet_budget(row)
        if save_checkpoint is not None and is_main_process():
            self._save_checkpoint(save_checkpoint, keys[-1])
        if measures.latency and is_main_process():
            self._latencies(report, rows)
        if trained or untrained:
            self._accuracies(report, trained, untrained)
        self._save(report)
        return report

    def _check_budgets(self, budgets: Sequence[float],
                       save_checkpoint: Optional[str]) -> None:
        """Refuse budgets that the network cannot meet."""
        if not budgets:
            return
        check_gates(self.network)
        if len(set(budgets)) != len(budgets):
            raise ValueError('A budget is named once, got '
                             f'{", ".join(f"{b:g}" for b in budgets)}.')
        for budget in budgets:
            self.network.compute(self.input_size).check_target(budget)
        if save_checkpoint is not None and len(budgets) > 1:
            raise ValueError(
                'A checkpoint has one threshold, got the budgets '
                f'{", ".join(f"{b:g}" for b in budgets)}. Save it for one of '
                'them.')

    def _check_space(self, report: Report, trained: Sequence[WidthRow],
                     untrained: Sequence[Subnet]) -> None:
        """Refuse features of the bank that the disk has no room for."""
        if not self.measures.accuracies:
            return
        channels = [row.channels for row in trained]
        channels += [report.row(subnet).channels for subnet in untrained]
        if self.measures.baselines and report.raw_pixels is None:
            pixels = raw_pixels(torch.zeros(1, 3, *self.input_size))
            channels.append(pixels.numel())
        check_space(len(self.loaders[BANK].dataset), channels)

    def _has_gates(self, subnet: Subnet) -> bool:
        """Whether the compute of ``subnet`` depends on the images."""
        return subnet.gated and hasattr(self.network, 'forward_gated')

    def _lacks(self, row: WidthRow) -> bool:
        """Whether features of ``row`` are needed."""
        measures = self.measures
        return ((measures.knn and row.knn is None)
                or (measures.linear and row.linear is None)
                or len(row.linear_runs or []) < measures.linear_runs
                or (self._has_gates(row.subnet) and row.ratio is None))

    def _meet_budget(self, row: WidthRow) -> None:
        """A copy of the network with the threshold for ``row``."""
        network = deepcopy(self.network)
        images = Images(shuffled(self.loaders[BANK], self.measures.num_images),
                        self.preprocessor)
        with self.console.status(f'Calibrating {row.label}'):
            calibrate_threshold(network, images, row.budget, TOLERANCE)
        self.networks[row.key] = network

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

    def _network(self, key: RowKey) -> nn.Module:
        return self.networks.get(key, self.network)

    def _save_checkpoint(self, path: str, key: RowKey) -> None:
        state = dict(self.checkpoint['state_dict'])
        prefix = backbone_prefix(state)
        # A copy for a budget differs from the network in its gated mode alone.
        network = self.network if key[1] is None else self._network(key)
        for name, value in network.state_dict().items():
            state[prefix + name] = value.cpu()
        save_atomically(dict(self.checkpoint, state_dict=state), path)

    def _report(self, keys: Sequence[RowKey]) -> Report:
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
        known = {row.key for row in report.rows}
        new = [key for key in keys if key not in known]
        sizes = count_complexity(self.network, [subnet for subnet, _ in new],
                                 self.input_size)
        for subnet, budget in new:
            size = sizes[subnet]
            row = WidthRow(subnet,
                           self.network.feature_channels(subnet.width)[-1],
                           size.params, budget=budget)
            if not self._has_gates(subnet):  # else it depends on the images
                row.gmacs = size.macs / 1e9
                row.reference_gmacs = (size.reference or size).macs / 1e9
            report.rows.append(row)
        return report

    def _latencies(self, report: Report, rows: Sequence[WidthRow]) -> None:
        for row in rows:
            if row.latency_ms is None:
                images = None
                if self._has_gates(row.subnet):  # its time depends on them
                    images = next(
                        image_batches(self.loaders[QUERY],
                                      self.preprocessor))[:TIMED_IMAGES]
                with self.console.status(f'Timing {row.label}'):
                    row.latency_ms = width_latency(self._network(
                        row.key), row.subnet, self.input_size, images=images)
                self._save(report)

    def _accuracies(self, report: Report, trained: Sequence[WidthRow],
                    untrained: Sequence[Subnet]) -> None:
        """One pass over bank and queries, then one row at a time."""
        encoders: Dict[Tuple[str, Optional[RowKey]], Callable] = {
            (TRAINED, row.key): encoder(self._network(row.key), row.subnet)
            for row in trained}
        if untrained:
            initial = untrained_network(self.config).to(self.measures.device)
            self.calibrate(initial, untrained, 'Calibrating (untrained)')
            encoders.update({
                (UNTRAINED, (s, None)): encoder(initial, s)
                for s in untrained})
        if self.measures.baselines and report.raw_pixels is None:
            encoders[PIXELS, None] = raw_pixels
        size = len(self.loaders[QUERY].dataset)
        # How many of the queries this process has: encode() says which ones.
        own = len(range(get_rank(), size, get_world_size()))
        tallies = {
            row.key: GateTally(own) for row in trained
            if self._has_gates(row.subnet) and row.ratio is None}
        watched = {
            (TRAINED, key): encoder(self._network(key), key[0], tally)
            for key, tally in tallies.items()}
        queries, query_labels = self._features(QUERY, {**encoders, **watched})
        for key, tally in tallies.items():
            row, network = report.row(*key), self._network(key)
            row.threshold = threshold_of(network)
            row.enter_gates(tally.use(),
                            network.compute(self.input_size).total)
            self._check_ratio(row)
        if not self.measures.accuracies:
            return
        bank, bank_labels = self._features(BANK, encoders)
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

    def _features(self, key: str,
                  encoders: dict) -> Tuple[Dict[Any, np.ndarray], np.ndarray]:
        """Features and labels of the images of a loader."""
        loader = self.loaders[key]
        return encode(encoders, labelled_batches(loader, self.preprocessor),
                      len(loader.dataset),
                      f'Features of the {key.split("_")[1]}')

    def _check_ratio(self, row: WidthRow) -> None:
        """Say so if the queries need another compute than the budget."""
        budget, ratio = row.budget, row.ratio
        if budget and ratio and abs(ratio - budget) > 0.01 * budget:
            self.console.print(
                f'{row.label}: the queries take {ratio:.4f} of the dense '
                'network. The images of the bank, on which the threshold was '
                'calibrated, met the budget; they are too few or differ from '
                'the queries.', soft_wrap=True)

    def _classify(self, report: Report, kind: str, key: Optional[RowKey],
                  data: Tuple[np.ndarray, np.ndarray, np.ndarray,
                              np.ndarray], identities: Identities) -> None:
        """Enter the accuracies of one set of features into ``report``."""
        measures = self.measures
        entry: Any = report if key is None else report.row(*key)
        title = kind if key is None else f'{kind}, {entry.label}'
        name = KNN_ENTRY[kind]
        if getattr(entry, name) is None and (kind != TRAINED or measures.knn):
            with self.console.status(f'Nearest neighbours ({title})'):
                setattr(
                    entry, name,
                    knn_accuracy(*data, measures.k, identities=identities,
                                 metric=measures.metric,
                                 device=measures.device))
        if kind != TRAINED or not measures.linear:
            return
        with self.console.status(f'Linear probe ({title})'):
            if entry.linear is None:
                entry.linear, entry.linear_decay = linear_probe(
                    *data, identities=identities)
            known = entry.linear_runs or []
            entry.linear_runs = known + [
                linear_run(*data, entry.linear_decay, run, identities)
                for run in range(len(known), measures.linear_runs)] or None

    def _save(self, report: Report) -> None:
        if is_main_process():
            report.save(self.out)

    def _settings(self) -> dict:
        """Everything that accuracies depend on, to compare two runs."""
        measures = self.measures
        keys = BANK, QUERY, CALIBRATE_ON[measures.calibrate_on]
        # Reports from before there were others have no metric.
        metric = {} if measures.metric == 'cosine' else dict(
            metric=measures.metric)
        return dict(metric, checkpoint_sha256=sha256(
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
