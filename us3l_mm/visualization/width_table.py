# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What a test found at each width, as a table."""
import re
from typing import Dict, Sequence

from rich.table import Table

from us3l_mm.models.layers import Subnet

KINDS = {'bbox': 'box', 'segm': 'mask'}
AP = re.compile(r'.*\b(bbox|segm)_mAP(?:_(50|75))?')


def width_table(metrics: Dict[str, float], widths: Sequence[float]) -> Table:
    """A row per width; columns of AP in percent, or whatever was measured.

    Args:
        metrics (dict[str, float]): By names that end in a width, such as
            ``coco/bbox_mAP_w0.50``.
        widths (sequence[float]): The rows, in this order.
    """
    ending = f'_{Subnet.of(widths[0])}'
    names = [
        name.removesuffix(ending) for name in metrics if name.endswith(ending)
    ]
    columns = {
        name: _title(*AP.fullmatch(name).groups())
        for name in names if AP.fullmatch(name)
    }
    in_percent = bool(columns)
    columns = columns or {name: name for name in names}
    table = Table()
    for title in ('width', *columns.values()):
        table.add_column(title, justify='right')
    for width in widths:
        values = [metrics[f'{name}_{Subnet.of(width)}'] for name in columns]
        table.add_row(
            f'{width:g}',
            *(f'{100 * value:.1f}' if in_percent else f'{value:.4g}'
              for value in values))
    return table


def _title(kind: str, overlap: str) -> str:
    return f'{KINDS[kind]} AP{overlap or ""}'
