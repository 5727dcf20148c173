# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Cosines of embeddings, as the logits of the contrastive losses.

Each function returns the cosines (rows, classes) and for each row the class
of its own image (rows). They are computed in single precision or better.
"""
from typing import Tuple

import torch
import torch.nn.functional as F
from mmengine.dist import get_rank, get_world_size
from torch import Tensor

from us3l_mm.models.layers import at_least_single
from .gather import gather_rows, gather_with_gradient


def unit(x: Tensor) -> Tensor:
    """The rows of ``x`` (N, d), L2-normalised in single precision or better.
    """
    return F.normalize(at_least_single(x), dim=1)


def check_temperature(loss: object, temperature: float) -> float:
    """``temperature``, or a ValueError if it is not above 0."""
    if not temperature > 0:
        raise ValueError(f'The temperature of {type(loss).__name__} is above '
                         f'0, got {temperature}.')
    return temperature


def queue_cosines(query: Tensor, key: Tensor,
                  queue: Tensor) -> Tuple[Tensor, Tensor]:
    """Each query with its own key, class 0, and with all keys of a queue.

    Source: MoCo, arXiv 1911.05722, algorithm 1.

    Args:
        query, key (Tensor): (N, d).
        queue (Tensor): L2-normalised keys (K, d).
    """
    query, key = unit(query), unit(key.detach())
    own = (query * key).sum(dim=1, keepdim=True)
    return (torch.cat([own, query @ queue.T], dim=1),
            query.new_zeros(len(query), dtype=torch.long))


def batch_cosines(query: Tensor, key: Tensor,
                  gather: bool = True) -> Tuple[Tensor, Tensor]:
    """The queries of this process with the keys of the batch.

    Gradients reach the queries only, so averaging over processes, as data
    parallel training does, gives that of the joint batch. Source: MoCo v3,
    arXiv 2104.02057, algorithm 1.

    Args:
        query, key (Tensor): (N, d).
        gather (bool): Whether the keys are those of all processes. Defaults
            to True.
    """
    query, key = unit(query), unit(key.detach())
    own = torch.arange(len(query), device=query.device)
    if gather and get_world_size() > 1:
        key = gather_rows(key)
        own = own + get_rank() * len(query)
    return query @ key.T, own


def pair_cosines(first: Tensor, second: Tensor,
                 gather: bool = True) -> Tuple[Tensor, Tensor]:
    """Every embedding of two views with all others, (2N, 2N - 1).

    Source: SimCLR, arXiv 2002.05709, equation 1.

    Args:
        first, second (Tensor): The views, (N, d). Gradients reach both, unless
            they are detached.
        gather (bool): Whether N counts the images of all processes, so that
            several processes train what one would on the joint batch.
            Defaults to True.
    """
    first, second = unit(first), unit(second)
    if gather and get_world_size() > 1:
        first, second = (gather_with_gradient(x)
                         if x.requires_grad else gather_rows(x)
                         for x in (first, second))
    both = torch.cat([first, second])
    count = len(both)
    # Without the diagonal: after its first element, every row of count + 1
    # elements ends with the next one.
    cosines = (both @ both.T).flatten()[1:].view(count - 1, count + 1)
    cosines = cosines[:, :-1].reshape(count, count - 1)
    # The other embedding of row i is i + N, or i - N; those behind the
    # diagonal have moved up.
    rows = torch.arange(count, device=both.device)
    partner = rows.roll(len(first))
    return cosines, partner - (partner > rows).long()
