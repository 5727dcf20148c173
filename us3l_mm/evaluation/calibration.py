# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Batch-norm statistics of any sub-networks, in one pass over the data."""
from collections import defaultdict
from functools import partial
from typing import (Any, Callable, Dict, Iterable, Iterator, Optional,
                    Sequence, Tuple, Union)

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from torch import Tensor, nn
from torch.utils.data import DataLoader

from us3l_mm.models.layers import (
    FULL, SlimmableBatchNorm, Subnet, SubnetLike, SwitchableBatchNorm, at,
    at_least_single, check_subnets, evaluation_mode, slimmable_layers)
from .data import check_num_images, shuffled
from .progress import count_images

Norm = Union[SlimmableBatchNorm, SwitchableBatchNorm]


@torch.no_grad()
def calibrate(network: nn.Module, batches: Iterable[Tensor],
              subnets: Sequence[SubnetLike], num_images: Optional[int] = None,
              progress: Optional[str] = None, is_share: bool = False,
              forward: Optional[Callable[[Any], Any]] = None,
              momentum: Optional[float] = None, private: bool = False) -> int:
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
            a plain call does not do that. With ``is_share``, batches may then
            be tuples that begin with images. Defaults to the network itself.
        momentum (float, optional): Average mean and unbiased variance over
            the batches with this momentum, as a norm of PyTorch tracks them,
            in place of pooling; the authors of US3L have 0.1. The last few
            batches then decide, so it takes one process. Defaults to None.
        private (bool): Whether norms that sub-networks have of their own
            (:class:`~us3l_mm.models.layers.SwitchableBatchNorm`) are measured
            as well; training tracks their statistics. Defaults to False.

    Returns:
        int: The number of images used, over all processes.

    Raises:
        TypeError, ValueError: If the network does not have a sub-network,
            ``num_images`` is below 2, there are less than two images,
            ``momentum`` is not in (0, 1] or given to several processes, or
            images or statistics are not finite; nothing is stored then.
    """
    if not isinstance(network, nn.Module):
        raise TypeError('network is a module, such as a backbone, got '
                        f'{network!r}.')
    check_num_images(num_images)
    check_momentum(momentum)
    if isinstance(subnets, (str, float, int, Subnet)):
        raise TypeError('subnets is a list of sub-networks, such as '
                        f'[{subnets!r}], got {subnets!r}.')
    wanted = list(dict.fromkeys(map(Subnet.of, subnets)))
    check_subnets(network, wanted)
    kinds = (SlimmableBatchNorm, *((SwitchableBatchNorm, ) if private else ()))
    norms = [
        layer for layer in slimmable_layers(network)
        if isinstance(layer, kinds)]
    if not norms or not wanted:
        return 0
    if not is_share:
        batches = _rebatch(batches, num_images)
    pools, seen = _fill(wanted, network, norms,
                        count_images(batches, progress, num_images), forward
                        or network, momentum)
    if seen < 2:
        raise ValueError(
            f'Batch statistics need at least two images, got {seen}: is the '
            'loader empty? (A single image in a process is not counted.)')
    measured = {key: pool.statistics() for key, pool in pools.items()}
    for (subnet, _), values in measured.items():
        if not all(value.isfinite().all() for value in values):
            raise ValueError(
                f'The batch-norm statistics of {subnet} are not finite, though'
                ' the images are: the weights have probably diverged in '
                'training. See the loss in the training log, and lower the '
                'learning rate.')
    for (subnet, index), values in measured.items():
        norms[index].set_statistics(subnet, *values)
    return seen


def calibrate_detector(detector: nn.Module, loader: DataLoader,
                       subnets: Optional[Sequence[SubnetLike]] = None,
                       num_images: Optional[int] = None,
                       progress: Optional[str] = None) -> int:
    """Measure and store the statistics of ``subnets``; see :func:`calibrate`.

    Images come in batches as in training, augmented and padded in the same
    way, in a fixed random order that is shared out over the processes, so the
    number of processes does not matter. They pass through the modules that
    have norms: the backbone, also the neck, or, if the images are annotated,
    also the heads, which see the regions of training.

    Args:
        detector (nn.Module): An ``AllWidthsDetector``.
        loader (DataLoader): The loader of the training. The order of its
            images is not changed; its transforms change the random states.
        subnets (sequence, optional): The sub-networks, or their widths.
            Defaults to those that the detector was built for.
        num_images (int, optional): Number of images to use, over all
            processes together. Defaults to all.
        progress (str, optional): The text before a progress bar. Defaults to
            None for no bar.

    Returns:
        int: The number of images used, over all processes.
    """
    batches = (detector.data_preprocessor(batch, training=True)
               for batch in shuffled(loader, num_images))
    return calibrate(detector, ((batch['inputs'], batch['data_samples'])
                                for batch in batches),
                     detector.subnets if subnets is None else subnets,
                     num_images, progress, is_share=True,
                     forward=lambda batch: detector.run_norms(*batch))


def check_momentum(momentum: Optional[float]) -> None:
    """Refuse a momentum that :func:`calibrate` cannot use."""
    if momentum is None:
        return
    if not 0.0 < momentum <= 1.0:
        raise ValueError('The momentum of a running average is in (0, 1], got '
                         f'{momentum!r}.')
    if get_world_size() > 1:
        raise ValueError(
            'A running average depends on the order of the batches, which '
            f'{get_world_size()} processes do not have. Calibrate with one '
            'process, or leave the momentum out.')


class _Pool:
    """Mean and squared deviations of all that enters a norm, in float64."""

    def __init__(self) -> None:
        self.count = 0  # values per channel
        self.mean = self.deviations = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Pool a batch (N, c, ...)."""
        var, mean = _var_mean(at_least_single(x))
        count = x.numel() // x.shape[1]
        self.merge(count, mean.double(), var.double() * count)

    def merge(self, count: int, mean: Tensor, deviations: Tensor) -> None:
        """Pool what another pool has, by the formula of Chan et al., 1983."""
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.deviations = self.deviations + deviations + (
            delta.square() * (self.count * count / total))
        self.count = total

    def statistics(self) -> Tuple[Tensor, Tensor]:
        """Mean and unbiased variance, each (c,), float64."""
        return self.mean, self.deviations / max(self.count - 1, 1)


def _var_mean(x: Tensor, correction: int = 0) -> Tuple[Tensor, Tensor]:
    """Variance and mean of each channel, (N, c, ...) to (c,) each."""
    dims = [0, *range(2, x.ndim)]
    if x.device.type != 'cpu':
        return torch.var_mean(x, dims, correction=correction)
    # There torch.var_mean takes about eight times as long as these sums.
    mean = x.mean(dims, keepdim=True)
    squares = (x - mean).square_().sum(dims)
    return squares / (x.numel() // x.shape[1] - correction), mean.flatten()


class _Average(_Pool):
    """Running averages of the statistics of batches, which begin at (0, 1).

    They take the place of the mean and of the deviations of two values, whose
    variance these are.
    """

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.count, self.momentum = 2, momentum
        self.deviations = torch.ones_like(self.mean)

    def add(self, x: Tensor) -> None:
        var, mean = _var_mean(at_least_single(x), correction=1)
        self.mean = torch.lerp(self.mean.to(mean.device), mean.double(),
                               self.momentum)
        self.deviations = torch.lerp(self.deviations.to(var.device),
                                     var.double(), self.momentum)


def _fill(subnets: Sequence[Subnet], network: nn.Module, norms: Sequence[Norm],
          batches: Iterable, forward: Callable[[Any], Any],
          momentum: Optional[float]) -> Tuple[Dict[tuple, _Pool], int]:
    """Run all batches through all sub-networks.

    Returns:
        tuple: The pools of all processes together, by sub-network and index
        of the norm, and their number of images.
    """
    own: Dict[tuple, _Pool] = defaultdict(
        _Pool if momentum is None else partial(_Average, momentum))
    current, seen, mistake = FULL, 0, None

    def enters(index: int, norm: nn.Module, args: tuple) -> None:
        if args[0].numel():  # images of the batch have regions
            own[current, index].add(args[0])

    syncs = [norm.sync for norm in norms]
    inner = [child for norm in norms for child in norm.modules()]
    tracks = [child.track_running_stats for child in inner]
    handles = [
        norm.register_forward_pre_hook(partial(enters, index))
        for index, norm in enumerate(norms)]
    try:
        with evaluation_mode(network):
            for norm in norms:
                norm.train()
                norm.sync = False  # other processes may have fewer batches
            for child in inner:  # statistics are stored at the end
                child.track_running_stats = False
            for number, batch in enumerate(batches):
                images = batch[0] if isinstance(batch, tuple) else batch
                mistake = _not_finite(images, number)
                if mistake is not None:
                    break
                for current in subnets:
                    with at(network, current):
                        forward(batch)
                seen += len(images)
    finally:
        for norm, sync, handle in zip(norms, syncs, handles):
            norm.sync = sync
            handle.remove()
        for child, track in zip(inner, tracks):
            child.track_running_stats = track
    parts = all_gather_object((seen, mistake, {
        key: (pool.count, pool.mean.cpu(), pool.deviations.cpu())
        for key, pool in own.items()}))
    pools: Dict[tuple, _Pool] = defaultdict(_Pool)
    for _, mistake, part in parts:
        if mistake is not None:  # in one process; all raise it
            raise ValueError(mistake)
        for key, values in part.items():
            pools[key].merge(*values)
    return pools, sum(count for count, _, _ in parts)


def _not_finite(images: Tensor, number: int) -> Optional[str]:
    """What is wrong with a batch of images, if they are not finite."""
    finite = images.flatten(1).isfinite().all(dim=1)
    if finite.all():
        return None
    return (
        f'{int((~finite).sum())} of the {len(images)} images of batch '
        f'{number + 1} are not finite (nan or inf). Look for a std of 0 in '
        'data_preprocessor, and for broken images.')


def _rebatch(batches: Iterable[Tensor],
             limit: Optional[int]) -> Iterator[Tensor]:
    """The share of this process in ``limit`` images, two or more in a batch.

    A single image on a map of one pixel has no variance, so it is added to
    the batch before or after it.
    """
    if limit is not None:
        each, rest = divmod(limit, get_world_size())
        limit = each + (get_rank() < rest)
    held = None
    for images in batches:
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise TypeError(
                'batches are tensors (N, 3, H, W) of preprocessed images, got '
                f'{getattr(images, "shape", type(images).__name__)}. For a '
                'DataLoader of MMPretrain pass us3l_mm.evaluation.data.'
                'image_batches(loader, data_preprocessor).')
        if limit is not None:
            images = images[:limit]
            limit -= len(images)
        if held is None:
            held = images
        elif min(len(held), len(images)) == 1:
            held = torch.cat([held, images])
        else:
            yield held
            held = images
        if limit == 0:
            break
    if held is not None and len(held) > 1:
        yield held
