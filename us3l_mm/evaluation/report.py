# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The report on the sub-networks of a checkpoint: rows, files, table."""
import csv
import json
import os
import os.path as osp
from dataclasses import dataclass, field, fields
from typing import List, Optional

from rich.table import Table

from us3l_mm.fileio import write_atomically
from us3l_mm.models.layers import Subnet, SubnetLike

JSON, CSV = 'widths.json', 'widths.csv'


@dataclass
class WidthRow:
    """One sub-network. Accuracies are in percent; None is not measured yet.

    Attributes:
        subnet (Subnet): The sub-network; also given by its width or its name.
        channels (int): Number of features of the backbone.
        params (int): Number of parameters of the backbone.
        gmacs (float): Multiply-accumulates of the backbone for one image, in
            1e9.
        reference_gmacs (float, optional): Multiply-accumulates of the
            reference implementation for the same result; more, where it
            computes what no layer reads.
        latency_ms (float, optional): Median latency of one image on the
            device of the report.
        knn (float, optional): Accuracy of nearest neighbours.
        linear (float, optional): Accuracy of a linear classifier.
        linear_decay (float, optional): The weight decay chosen for it.
        untrained_knn (float, optional): kNN with initial weights.
    """

    subnet: Subnet
    channels: int
    params: int
    gmacs: float
    reference_gmacs: Optional[float] = None
    latency_ms: Optional[float] = None
    knn: Optional[float] = None
    linear: Optional[float] = None
    linear_decay: Optional[float] = None
    untrained_knn: Optional[float] = None

    def __post_init__(self) -> None:
        self.subnet = Subnet.of(self.subnet)

    @property
    def width(self) -> float:
        """The width of the sub-network."""
        return self.subnet.width

    def as_dict(self) -> dict:
        """The row in a file: name and width of the sub-network, figures."""
        names = dict(subnet=str(self.subnet), width=self.width)
        return names | vars(self) | names

    @classmethod
    def from_dict(cls, row: dict) -> 'WidthRow':
        """The row of a file; those of older versions name the width alone."""
        row = dict(row)
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

    def row(self, subnet: SubnetLike) -> WidthRow:
        """The row of ``subnet``, or raise KeyError."""
        return {row.subnet: row for row in self.rows}[Subnet.of(subnet)]

    def save(self, folder: str) -> None:
        """Write ``widths.json`` and ``widths.csv``, each atomically."""
        self.rows.sort(key=lambda row: (-row.width, row.subnet.gated))
        rows = [row.as_dict() for row in self.rows]

        def write_json(path: str) -> None:
            with open(path, 'w') as file:
                json.dump(dict(vars(self), rows=rows), file, indent=2)

        def write_csv(path: str) -> None:
            with open(path, 'w', newline='') as file:
                names = [f.name for f in fields(WidthRow)]
                writer = csv.DictWriter(file, ['subnet', 'width', *names[1:]])
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
        small = all(row.gmacs < 1 for row in self.rows)
        gmacs = '{:.5f}' if small else '{:.3f}'
        columns = [('subnet', 'subnet', '{}'), ('channels', 'channels', '{}'),
                   ('params', 'params', '{:,}'), ('GMACs', 'gmacs', gmacs),
                   ('reference\nGMACs', 'reference_gmacs', gmacs),
                   ('latency\n(ms)', 'latency_ms', '{:.2f}'),
                   ('kNN\n(%)', 'knn', '{:.1f}'),
                   ('linear\n(%)', 'linear', '{:.1f}'),
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
        if self.device:
            notes.append(f'latency of one image on {self.device}')
        if self.overlap:
            notes.append(
                f'{self.overlap:,} queries are also in the bank: each was '
                'left out of its own neighbours and of what a linear '
                'classifier learned')
        table = Table(title=self.name, caption=', '.join(notes) or None)
        for title, *_ in columns:
            table.add_column(title, justify='right')
        for row in self.rows:
            values = [getattr(row, name) for _, name, _ in columns]
            table.add_row(*('' if value is None else form.format(value)
                            for value, (*_, form) in zip(values, columns)))
        return table


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
