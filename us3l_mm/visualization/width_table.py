# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The metrics of each sub-network, as a table."""
import re
from typing import Dict, Sequence

from rich.table import Table

from us3l_mm.models.layers import Subnet, SubnetLike

KINDS = {'bbox': 'box', 'segm': 'mask'}
AP = re.compile(r'.*\b(bbox|segm)_mAP(?:_(50|75))?')


def width_table(metrics: Dict[str, float],
                subnets: Sequence[SubnetLike]) -> Table:
    """A row for each sub-network; columns of AP in percent, or all metrics.

    Args:
        metrics (dict[str, float]): Metrics, by names that end in that of a
            sub-network, such as ``coco/bbox_mAP_w0.50``.
        subnets (sequence): The sub-networks of the rows, or their widths.
    """
    subnets = [Subnet.of(subnet) for subnet in subnets]
    ending = f'_{subnets[0]}'
    names = [
        name.removesuffix(ending) for name in metrics if name.endswith(ending)]
    matches = {name: AP.fullmatch(name) for name in names}
    columns = {
        name: f'{KINDS[match[1]]} AP{match[2] or ""}'
        for name, match in matches.items() if match}
    in_percent = bool(columns)
    columns = columns or {name: name for name in names}
    table = Table()
    for title in ('subnet', *columns.values()):
        table.add_column(title, justify='right')
    for subnet in subnets:
        values = [metrics[f'{name}_{subnet}'] for name in columns]
        table.add_row(
            str(subnet),
            *(f'{100 * value:.1f}' if in_percent else f'{value:.4g}'
              for value in values))
    return table
