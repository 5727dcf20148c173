# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The report on the sub-networks of a checkpoint: rows, files, table."""
import csv
import json
import math
import os
import os.path as osp
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Dict, List, Optional, Tuple

from rich.table import Table

from us3l_mm.fileio import write_atomically
from us3l_mm.models.layers import Subnet, SubnetLike
from .gates import GateUse

JSON, CSV = 'widths.json', 'widths.csv'
# What few rows have: the others leave it out of their files.
SPECIAL = ('linear_runs', 'budget', 'threshold', 'ratio', 'density', 'gates')
# What is written beside linear_runs.
SPREAD = ('linear_mean', 'linear_deviation')
# What a cell of a CSV cannot hold.
NESTED = ('linear_runs', 'gates')
# A sub-network and, of a gated one, the budget of its threshold.
RowKey = Tuple[Subnet, Optional[float]]


@dataclass
class WidthRow:
    """One sub-network. Accuracies are in percent; None is not measured yet.

    Attributes:
        subnet (Subnet): The sub-network; also given by its width or its name.
        channels (int): Number of features of the backbone.
        params (int): Number of parameters of the backbone.
        gmacs (float, optional): Multiply-accumulates of the backbone for one
            image, in 1e9; of a gated network the mean over the queries.
        reference_gmacs (float, optional): Multiply-accumulates of the
            reference implementation for the same result; more, where it
            computes what no layer reads.
        latency_ms (float, optional): Median latency of one image on the
            device of the report.
        knn (float, optional): Accuracy of nearest neighbours.
        linear (float, optional): Accuracy of a linear classifier.
        linear_decay (float, optional): The weight decay chosen for it.
        untrained_knn (float, optional): kNN with initial weights.
        linear_runs (list[float], optional): Accuracies of linear classifiers
            on training images drawn at random, see
            :func:`~us3l_mm.evaluation.linear_probe.linear_run`.
        budget (float, optional): The share of the dense network's
            multiply-accumulates that the threshold of the gates was
            calibrated for. None for the threshold in the checkpoint.
        threshold (float, optional): That of the gates.
        ratio (float, optional): The share of the dense network's
            multiply-accumulates that the gated one took for the queries,
            gates included.
        density (float, optional): Mean share of the channels with gates that
            were on.
        gates (dict, optional): For each gate by name its ``density``, and how
            many channels were ``off`` for all queries, ``on`` for all, or
            ``data_dependent``.
    """

    subnet: Subnet
    channels: int
    params: int
    gmacs: Optional[float] = None
    reference_gmacs: Optional[float] = None
    latency_ms: Optional[float] = None
    knn: Optional[float] = None
    linear: Optional[float] = None
    linear_decay: Optional[float] = None
    untrained_knn: Optional[float] = None
    linear_runs: Optional[List[float]] = None
    budget: Optional[float] = None
    threshold: Optional[float] = None
    ratio: Optional[float] = None
    density: Optional[float] = None
    gates: Optional[Dict[str, dict]] = None

    def __post_init__(self) -> None:
        self.subnet = Subnet.of(self.subnet)

    @property
    def width(self) -> float:
        """The width of the sub-network."""
        return self.subnet.width

    @property
    def key(self) -> RowKey:
        """What no other row of a report has."""
        return self.subnet, self.budget

    @property
    def label(self) -> str:
        """The name in messages: 'w0.50', 'gated', 'gated 0.3'."""
        budget = '' if self.budget is None else f' {self.budget:g}'
        return f'{self.subnet}{budget}'

    @property
    def linear_spread(self) -> Optional[Tuple[float, float]]:
        """Mean and standard deviation of ``linear_runs``, of two or more."""
        runs = self.linear_runs or []
        return (mean(runs), stdev(runs)) if len(runs) > 1 else None

    def enter_gates(self, use: GateUse, dense_macs: int) -> None:
        """Enter what gates left on, in place."""
        channels = sum(len(on) for on in use.shares.values())
        self.ratio = use.ratio
        self.gmacs = use.ratio * dense_macs / 1e9
        self.density = float(sum(on.sum()
                                 for on in use.shares.values())) / channels
        self.gates = {
            name:
            dict(
                zip(('density', 'off', 'on', 'data_dependent'),
                    (use.density[name], *kinds)))
            for name, kinds in use.kinds.items()}

    def as_dict(self) -> dict:
        """The row in a file: name and width of the sub-network, figures."""
        names = dict(subnet=str(self.subnet), width=self.width)
        spread = dict(zip(SPREAD, self.linear_spread or ()))
        row = names | vars(self) | names | spread
        return {
            name: value for name, value in row.items()
            if value is not None or name not in SPECIAL}

    @classmethod
    def from_dict(cls, row: dict) -> 'WidthRow':
        """The row of a file; those of older versions name the width alone."""
        row = {name: row[name] for name in row if name not in SPREAD}
        width = row.pop('width')
        return cls(**{'subnet': width, **row})


@dataclass
class Report:
    """All sub-networks of a checkpoint.

    Attributes:
        name (str): Name of the run, for the legend of a plot.
        settings (dict): Everything that the figures depend on.
        rows (list[WidthRow]): The rows, widest first.
        chance (float, optional): Accuracy of the most frequent class.
        raw_pixels (float, optional): kNN on the pixels themselves.
        device (str): The device that latency was measured on.
        overlap (int): Number of queries that are also in the bank.
    """

    name: str
    settings: dict
    rows: List[WidthRow] = field(default_factory=list)
    chance: Optional[float] = None
    raw_pixels: Optional[float] = None
    device: str = ''
    overlap: int = 0

    def row(self, subnet: SubnetLike,
            budget: Optional[float] = None) -> WidthRow:
        """The row of ``subnet`` at ``budget``, or raise KeyError."""
        return {row.key: row for row in self.rows}[Subnet.of(subnet), budget]

    def label(self, row: WidthRow) -> str:
        """The name of ``row`` in tables and plots.

        Beside gated sub-networks the full one is 'dense', and not 'w1.00'.
        """
        gated = any(other.subnet.gated for other in self.rows)
        return 'dense' if gated and row.subnet.is_full else row.label

    def save(self, folder: str) -> None:
        """Write ``widths.json`` and ``widths.csv``, each atomically."""
        self.rows.sort(key=_order)
        rows = [row.as_dict() for row in self.rows]

        def write_json(path: str) -> None:
            with open(path, 'w') as file:
                json.dump(dict(vars(self), rows=rows), file, indent=2)

        def write_csv(path: str) -> None:
            with open(path, 'w', newline='') as file:
                columns = dict.fromkeys(name for row in rows for name in row
                                        if name not in NESTED)
                writer = csv.DictWriter(file, columns, extrasaction='ignore')
                writer.writeheader()
                writer.writerows(rows)

        for path, write in zip(self.paths(folder), (write_json, write_csv)):
            write_atomically(path, write)

    def paths(self, folder: str) -> List[str]:
        """The files that :meth:`save` writes into ``folder``."""
        return [osp.join(folder, name) for name in (JSON, CSV)]

    @classmethod
    def load(cls, path: str) -> 'Report':
        """Read a ``widths.json``, or raise ValueError."""
        try:
            with open(path) as file:
                content = json.load(file)
            rows = [WidthRow.from_dict(row) for row in content.pop('rows')]
            return cls(**content, rows=rows)
        except FileNotFoundError:
            raise FileNotFoundError(
                f'There is no report {path}; tools/evaluate_widths.py writes '
                f'a {JSON}.') from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f'{path} is not a report of tools/evaluate_widths.py '
                f'({error}).') from None

    def table(self) -> Table:
        """A table of what was measured, for the terminal."""
        small = all((row.gmacs or 0) < 1 for row in self.rows)
        gmacs = '{:.5f}' if small else '{:.3f}'
        columns = [
            ('channels', 'channels', '{}'), ('params', 'params', '{:,}'),
            ('GMACs', 'gmacs', gmacs), ('of dense', 'ratio', '{:.3f}'),
            ('density', 'density', '{:.3f}'),
            ('reference\nGMACs', 'reference_gmacs', gmacs),
            ('latency\n(ms)', 'latency_ms', '{:.2f}'),
            ('kNN\n(%)', 'knn', '{:.1f}'), ('linear\n(%)', 'linear', '{:.1f}'),
            ('linear, runs\n(%)', 'linear_spread', '{0[0]:.1f} ± {0[1]:.1f}'),
            ('untrained\nkNN (%)', 'untrained_knn', '{:.1f}')]
        hidden = {
            name for _, name, _ in columns if all(
                getattr(row, name) is None for row in self.rows)}
        if all(row.reference_gmacs in (None, row.gmacs) for row in self.rows):
            hidden.add('reference_gmacs')
        columns = [column for column in columns if column[1] not in hidden]
        notes = [
            f'{title} {value:.1f} %'
            for title, value in (('kNN of raw pixels', self.raw_pixels),
                                 ('chance', self.chance)) if value is not None]
        if 'metric' in self.settings:
            notes.append(f'kNN: k = {self.settings["k"]}, '
                         f'{self.settings["metric"]} distance')
        if self.device:
            notes.append(f'latency of one image on {self.device}')
        if self.overlap:
            notes.append(
                f'{self.overlap:,} queries are also in the bank: each was '
                'left out of its own neighbours and of what a linear '
                'classifier learned')
        table = Table(title=self.name, caption=', '.join(notes) or None)
        for title in ('subnet', *(title for title, *_ in columns)):
            table.add_column(title, justify='right', no_wrap=title == 'subnet')
        for row in self.rows:
            values = [getattr(row, name) for _, name, _ in columns]
            table.add_row(
                self.label(row),
                *('' if value is None else form.format(value)
                  for value, (*_, form) in zip(values, columns)))
        return table


def _order(row: WidthRow) -> tuple:
    """Widest first, dense before gated, lower and lower budgets at the end."""
    return -row.width, row.subnet.gated, -(row.budget or math.inf)


def resume(folder: str, name: str, settings: dict) -> tuple:
    """The report of an earlier run in ``folder``, if its settings are these.

    Returns:
        tuple: The report to continue with, and a message about it.
    """
    path = osp.join(folder, JSON)
    if not osp.exists(path):
        return Report(name, settings), ''
    report = Report.load(path)
    settings = json.loads(json.dumps(settings))
    changed = sorted(key for key in settings.keys() | report.settings.keys()
                     if settings.get(key) != report.settings.get(key))
    if not changed:
        return report, f'Continuing with the results in {path}.'
    kept = osp.join(folder, f'previous_{JSON}')
    os.replace(path, kept)
    return Report(name, settings), (
        f'{path} was measured with another {", ".join(changed)}; it is '
        f'{kept} now.')
