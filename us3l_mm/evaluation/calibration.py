# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Batch-norm statistics of any set of widths, in one pass over the data."""
from contextlib import contextmanager
from typing import (Any, Callable, Dict, Iterable, Iterator, List, Optional,
                    Sequence)

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from torch import Tensor, nn

from us3l_mm.models.layers import (SlimmableBatchNorm, at_width,
                                   slimmable_layers)
from .progress import count_images


@torch.no_grad()
def calibrate(network: nn.Module, batches: Iterable[Tensor],
              widths: Sequence[float], num_images: Optional[int] = None,
              progress: Optional[str] = None, is_share: bool = False,
              forward: Optional[Callable[[Any], Any]] = None) -> int:
    """Measure and store the batch-norm statistics of ``widths``.

    One pass over the data serves all widths. The network runs as in training,
    each norm on the statistics of its batch, but without dropout and drop
    path; what enters a norm is pooled over all images of all processes: the
    mean, and the unbiased variance that :class:`torch.nn.BatchNorm2d` would
    store for the one giant batch of these inputs. Statistics are stored when
    the pass is over, those of other widths stay; modes and the current width
    of the network are restored, and a teacher inside it is not reached.
    Source: US-Nets, arXiv 1903.05134, and US3L, 2303.06870, which average
    variances per batch; pooling adds the spread between batches.

    Args:
        network (nn.Module): What the images go through, such as a backbone.
            One without :class:`~us3l_mm.models.layers.SlimmableBatchNorm` has
            nothing to measure: no image is read.
        batches (iterable[Tensor]): Preprocessed images (N, 3, H, W) on the
            device of the network, for this process; N may vary. As the
            layers see batch statistics, batches are best as large as those
            of the training, and not of one class each.
        widths (sequence[float]): Within the ``width_range`` of the network.
        num_images (int, optional): How many images to use, over all processes
            together. Defaults to all.
        progress (str, optional): What to write before a progress bar.
            Defaults to None: no bar.
        is_share (bool): Whether ``batches`` are this process's share of
            ``num_images`` already, all to be used. Defaults to False: it
            takes as many of them as other processes do.
        forward (callable, optional): Takes a batch through the network, where
            that is not a mere call of it. ``batches`` may be anything then
            that has a length, slices and a sum, as lists have. Defaults to
            None: the network itself.

    Returns:
        int: The number of images used, over all processes.

    Raises:
        TypeError, ValueError: for a width that is not allowed, for
            ``num_images`` below 2, or where there are less than two images;
            nothing is stored then.
    """
    if num_images is not None and num_images < 2:
        raise ValueError('Batch statistics need at least two images, got '
                         f'num_images={num_images}.')
    widths = list(dict.fromkeys(widths))
    for width in widths:
        with at_width(network, width):
            pass  # refuses, before any long work, what is not allowed
    norms = _norms(network)
    if not norms or not widths:
        return 0
    pools = {
        width: {norm: _Pool(norm, width)
                for norm in norms}
        for width in widths
    }
    seen = _fill(
        pools, network,
        count_images(
            _rebatch(batches, None if is_share else _share(num_images)),
            progress, num_images), forward or network)
    seen = _reduce([p for by_norm in pools.values() for p in by_norm.values()],
                   seen)
    if seen < 2:
        raise ValueError(
            f'Batch statistics need at least two images, got {seen}: is the '
            'loader empty? (An image that is alone in its process does not '
            'count.)')
    for width, by_norm in pools.items():
        for norm, pool in by_norm.items():
            if pool.count:  # the forward went through this norm
                norm.set_statistics(width, *pool.statistics())
    return seen


def has_norms(network: nn.Module) -> bool:
    """Whether ``network`` has batch norms whose statistics are measured."""
    return bool(_norms(network))


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Run a block in evaluation mode, but norms on batch statistics.

    Those of the batch of this process: others may hold fewer batches.
    """
    modes = [(module, module.training) for module in network.modules()]
    syncs = [(norm, norm.sync) for norm in _norms(network)]
    network.eval()
    for norm, _ in syncs:
        norm.train()
        norm.sync = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for norm, sync in syncs:
            norm.sync = sync


class _Pool:
    """Mean and squared deviations of all that enters a norm, in float64."""

    def __init__(self, norm: SlimmableBatchNorm, width: float):
        self.count = 0  # values per channel
        self.mean = torch.zeros(norm.active(width), dtype=torch.float64,
                                device=norm.running_mean.device)
        self.deviations = torch.zeros_like(self.mean)

    def add(self, x: Tensor) -> None:
        """Pool a batch (N, c, ...) by the formula of Chan et al., 1983."""
        if not x.numel():  # regions of images without any
            return
        x = x if x.dtype == torch.float64 else x.float()
        var, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
        count = x.numel() // x.shape[1]
        total = self.count + count
        delta = mean.double() - self.mean
        self.mean += delta * (count / total)
        self.deviations += (var.double() * count + delta.square() *
                            (self.count * count / total))
        self.count = total

    def statistics(self) -> tuple:
        """Mean and unbiased variance, each (c,), float64."""
        return self.mean, self.deviations / max(self.count - 1, 1)


def _norms(network: nn.Module) -> List[SlimmableBatchNorm]:
    return [
        layer for layer in slimmable_layers(network)
        if isinstance(layer, SlimmableBatchNorm)
    ]


def _fill(pools: Dict[float, dict], network: nn.Module,
          batches: Iterable[Tensor], forward: Callable[[Any], Any]) -> int:
    """Run all batches at all widths; returns the number of images."""
    current, seen = None, 0

    def enters(norm, args):
        pools[current][norm].add(args[0])

    handles = [
        norm.register_forward_pre_hook(enters) for norm in _norms(network)
    ]
    try:
        with batch_statistics(network):
            for images in batches:
                for current in pools:
                    with at_width(network, current):
                        forward(images)
                seen += len(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _share(num_images: Optional[int]) -> Optional[int]:
    """This process's part of ``num_images``."""
    if num_images is None:
        return None
    each, rest = divmod(num_images, get_world_size())
    return each + (get_rank() < rest)


def _rebatch(batches: Iterable[Tensor],
             limit: Optional[int]) -> Iterator[Tensor]:
    """At most ``limit`` images, none of them alone in its batch.

    One image on a map of one pixel has no variance to be normalised by, so it
    joins the batch beside it.
    """
    held = None
    for images in batches:
        if limit is not None:
            images = images[:limit]
            limit -= len(images)
        if held is None:
            held = images
        elif min(len(held), len(images)) == 1:
            held = (torch.cat([held, images])
                    if isinstance(held, Tensor) else held + images)
        else:
            yield held
            held = images
        if limit == 0:
            break
    if held is not None and len(held) > 1:
        yield held


def _reduce(pools: List[_Pool], seen: int) -> int:
    """Pool over processes, in place; returns the images of all."""
    if get_world_size() == 1:
        return seen
    sizes = [len(pool.mean) for pool in pools]
    counts = pools[0].mean.new_tensor([seen] + [p.count for p in pools])
    sums = torch.cat([counts] + [p.mean * p.count for p in pools])
    all_reduce(sums)
    counts, sums = sums[:len(counts)].tolist(), sums[len(counts):]
    deviations = []
    for pool, count, total in zip(pools, counts[1:], sums.split(sizes)):
        mean = total / max(count, 1)
        deviations.append(pool.deviations + pool.count *
                          (pool.mean - mean).square())
        pool.count, pool.mean = round(count), mean
    deviations = torch.cat(deviations)
    all_reduce(deviations)
    for pool, part in zip(pools, deviations.split(sizes)):
        pool.deviations = part
    return round(counts[0])
