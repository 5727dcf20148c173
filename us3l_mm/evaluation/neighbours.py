# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The nearest neighbours of features, block by block on a device."""
from contextlib import contextmanager
from math import isqrt
from typing import Iterator, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Numbers in a table of distances or votes, to bound the memory.
TABLE_SIZE = 2**24
# How many tables the queries may take that are on the device at a time.
TABLES_OF_QUERIES = 8
# Candidates beside those that are asked for, because products of vectors are
# rounded and may exchange neighbours whose distances are nearly equal.
SPARE = 8
INDEX_BITS = 32


@torch.no_grad()
def nearest(bank: np.ndarray, queries: np.ndarray, count: int,
            metric: str = 'cosine', device: Union[str, torch.device] = 'cpu',
            table_size: int = TABLE_SIZE) -> Tuple[np.ndarray, np.ndarray]:
    """The ``count`` rows of ``bank`` that are nearest to each query.

    All distances are computed, as float32 products of matrices on ``device``,
    and the nearest ``count + 8`` rows are kept while block after block of the
    bank passes. The distances to these are then computed again in float64,
    from the differences of the features, and decide. A distance is therefore
    0 exactly where features are equal.

    Of rows at equal distances, those that come first in the bank are nearer.
    If more than 8 rows are as near as the last neighbour to within the
    rounding of float32, which of them are returned depends on the rounding.

    Beside the arrays, which may be memory maps, and the result, it takes the
    memory of about 16 tables of ``table_size`` float32 numbers, 1 GB by
    default, however many rows there are.

    Args:
        bank (np.ndarray): Finite features, (n, c).
        queries (np.ndarray): Finite features, (m, c).
        count (int): Number of neighbours, at most n.
        metric (str): 'euclidean', or 'cosine' for the Euclidean distance of
            L2-normalised features. Defaults to 'cosine'.
        device (str or torch.device): Where to compute. Defaults to 'cpu'.
        table_size (int): Limits the numbers in a table. Defaults to 2**24.

    Returns:
        tuple: Distances, float64 (m, count), in rising order, and the indices
        of the rows in ``bank``, int64 (m, count).
    """
    rows, points = torch.as_tensor(bank), torch.as_tensor(queries)
    side, channels = isqrt(table_size), rows.shape[1]
    candidates = min(count + SPARE, len(rows))

    def features(part: Tensor) -> Tensor:
        part = part.to(device, torch.float32)
        return F.normalize(part) if metric == 'cosine' else part

    # Distances do not depend on the origin. In the middle of the features the
    # products are smallest, and so is their rounding.
    centre = features(rows[::-(-len(rows) // side)]).mean(dim=0)
    # Written in place: many small arrays between large ones would scatter the
    # memory, so that it could not be used again.
    distances = torch.empty(len(points), count, dtype=torch.float64)
    indices = torch.empty(len(points), count, dtype=torch.int64)
    step = max(TABLES_OF_QUERIES * table_size // channels, 1)
    for start in range(0, len(points), step):
        group = points[start:start + step]
        with _full_precision():
            found = _candidates(
                features(group) - centre, ((features(part) - centre)
                                           for part in rows.split(side)),
                candidates, table_size)
        # Their differences in float64, a few times.
        few = max(table_size // 4 // (candidates * channels), 1)
        for first in range(0, len(group), few):
            distance, index = _by_distance(
                group[first:first + few].to(device), rows,
                found[first:first + few].sort(dim=1).values, metric)
            part = slice(start + first, start + first + len(index))
            distances[part] = distance[:, :count]
            indices[part] = index[:, :count]
    return distances.numpy(), indices.numpy()


def _candidates(queries: Tensor, blocks: Iterator[Tensor], count: int,
                table_size: int) -> Tensor:
    """Indices of the ``count`` nearest rows of all blocks, in any order.

    A distance and an index make one number: the bits of a float32 that is not
    negative have the order of the values. So of equal distances, the lowest
    indices win, wherever the blocks begin.
    """
    norms = queries.square().sum(dim=1, keepdim=True)
    keys = queries.new_full((len(queries), count),
                            torch.iinfo(torch.int64).max, dtype=torch.int64)
    start = 0
    for block in blocks:
        index = torch.arange(start, start + len(block), device=block.device)
        squares = block.square().sum(dim=1)
        step = max(table_size // len(block), 1)
        for first in range(0, len(queries), step):
            part = slice(first, first + step)
            table = torch.addmm(squares, queries[part], block.T, alpha=-2)
            table = table.add_(norms[part]).clamp_(min=0)
            new = table.view(torch.int32).long()
            new = new.bitwise_left_shift_(INDEX_BITS).add_(index)
            keys[part] = _least(
                torch.cat([keys[part], _least(new, count)], dim=1), count)
        start += len(block)
    return keys.bitwise_and_(2**INDEX_BITS - 1)


def _least(keys: Tensor, count: int) -> Tensor:
    count = min(count, keys.shape[1])
    return keys.topk(count, dim=1, largest=False, sorted=False).values


def _by_distance(queries: Tensor, bank: Tensor, index: Tensor,
                 metric: str) -> Tuple[Tensor, Tensor]:
    """Distances from their differences, in order, and their indices.

    Args:
        queries (Tensor): (m, c).
        bank (Tensor): (n, c), in memory or on a disk.
        index (Tensor): (m, k), in rising order, which equal distances keep.
    """
    near = bank[index.to(bank.device)].to(queries.device, torch.float64)
    query = queries.double()[:, None]
    # Sums of equal numbers may be rounded differently in another shape.
    equal = (near == query).all(dim=2)
    if metric == 'cosine':
        near, query = F.normalize(near, dim=2), F.normalize(query, dim=2)
    distances = near.sub_(query).norm(dim=2).masked_fill_(equal, 0)
    distances, order = distances.sort(dim=1, stable=True)
    return distances, index.gather(1, order)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 matrices in float32, not in TF32 or bfloat16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('highest')
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
