# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Batch-norm statistics of any sub-networks, in one pass over the data."""
from contextlib import contextmanager
from typing import (Any, Callable, Dict, Iterable, Iterator, List, Optional,
                    Sequence)

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from torch import Tensor, nn

from us3l_mm.models.layers import (SlimmableBatchNorm, Subnet, SubnetLike, at,
                                   at_least_single, check_subnets,
                                   evaluation_mode, slimmable_layers)
from .progress import count_images


@torch.no_grad()
def calibrate(network: nn.Module, batches: Iterable[Tensor],
              subnets: Sequence[SubnetLike], num_images: Optional[int] = None,
              progress: Optional[str] = None, is_share: bool = False,
              forward: Optional[Callable[[Any], Any]] = None) -> int:
    """Measure and store the batch-norm statistics of ``subnets``.

    One pass over the data serves all sub-networks. The network runs as in
    training, each norm on the statistics of its batch, but without dropout
    and drop path. What enters a norm is pooled over all images of all
    processes: the mean, and the unbiased variance that
    :class:`torch.nn.BatchNorm2d` would store for one batch of all of them.
    Statistics are stored at the end of the pass, and those of other
    sub-networks stay; modes and the current sub-network of the network are
    restored, and a teacher inside it is not reached. Sources: US-Nets, arXiv
    1903.05134, and US3L, 2303.06870, which average the variances of the
    batches; pooling adds the spread between batches.

    Args:
        network (nn.Module): What the images pass through, such as a backbone.
            If it has no :class:`~us3l_mm.models.layers.SlimmableBatchNorm`,
            there is nothing to measure and no image is read.
        batches (iterable[Tensor]): Preprocessed images (N, 3, H, W) on the
            device of the network, for this process; N may vary. Layers see
            batch statistics, so batches should be as large as in training,
            and not of one class each.
        subnets (sequence): The sub-networks, or their widths.
        num_images (int, optional): Number of images to use, over all
            processes together. Defaults to all.
        progress (str, optional): The text before a progress bar. Defaults to
            None for no bar.
        is_share (bool): Whether ``batches`` are already the share of this
            process in ``num_images``, all of it to be used. Defaults to
            False, where each process takes an equal number of its images.
        forward (callable, optional): Passes a batch through the network where
            a plain call does not do that. ``batches`` may then be anything
            with a length, slices and a sum, as lists have. Defaults to the
            network itself.

    Returns:
        int: The number of images used, over all processes.

    Raises:
        TypeError, ValueError: If the network does not have a sub-network,
            ``num_images`` is below 2, or there are less than two images;
            nothing is stored then.
    """
    if num_images is not None and num_images < 2:
        raise ValueError('Batch statistics need at least two images, got '
                         f'num_images={num_images}.')
    subnets = list(dict.fromkeys(map(Subnet.of, subnets)))
    check_subnets(network, subnets)
    norms = _norms(network)
    if not norms or not subnets:
        return 0
    pools = {
        subnet: {norm: _Pool(norm, subnet)
                 for norm in norms}
        for subnet in subnets
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
            'loader empty? (A single image in a process is not counted.)')
    for subnet, by_norm in pools.items():
        for norm, pool in by_norm.items():
            if pool.count:  # the images passed through this norm
                norm.set_statistics(subnet, *pool.statistics())
    return seen


def has_norms(network: nn.Module) -> bool:
    """Whether ``network`` has batch norms whose statistics are measured."""
    return bool(_norms(network))


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Run a block in evaluation mode, but with norms on batch statistics.

    These are the statistics of the batch of this process, since other
    processes may have fewer batches.
    """
    syncs = [(norm, norm.sync) for norm in _norms(network)]
    try:
        with evaluation_mode(network):
            for norm, _ in syncs:
                norm.train()
                norm.sync = False
            yield
    finally:
        for norm, sync in syncs:
            norm.sync = sync


class _Pool:
    """Mean and squared deviations of all that enters a norm, in float64."""

    def __init__(self, norm: SlimmableBatchNorm, subnet: Subnet):
        self.count = 0  # values per channel
        self.mean = torch.zeros(norm.active(subnet.width), dtype=torch.float64,
                                device=norm.running_mean.device)
        self.deviations = torch.zeros_like(self.mean)

    def add(self, x: Tensor) -> None:
        """Pool a batch (N, c, ...) by the formula of Chan et al., 1983."""
        if not x.numel():  # no image of the batch has a region
            return
        var, mean = torch.var_mean(at_least_single(x), [0, *range(2, x.ndim)],
                                   correction=0)
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


def _fill(pools: Dict[Subnet, dict], network: nn.Module,
          batches: Iterable[Tensor], forward: Callable[[Any], Any]) -> int:
    """Run all batches through all sub-networks; returns the image count."""
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
                    with at(network, current):
                        forward(images)
                seen += len(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _share(num_images: Optional[int]) -> Optional[int]:
    """The part of ``num_images`` that this process takes."""
    if num_images is None:
        return None
    each, rest = divmod(num_images, get_world_size())
    return each + (get_rank() < rest)


def _rebatch(batches: Iterable[Tensor],
             limit: Optional[int]) -> Iterator[Tensor]:
    """At most ``limit`` images, in batches of at least two.

    A single image on a map of one pixel has no variance, so it is added to
    the batch before or after it.
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
    """Pool over processes, in place; returns the total number of images."""
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
