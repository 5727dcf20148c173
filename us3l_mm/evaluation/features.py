# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Features of many sub-networks, in one pass over the data."""
from typing import (Any, Callable, Dict, Hashable, Iterable, Optional,
                    Sequence, Tuple, TypeVar)

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import (all_gather_object, gather, get_comm_device,
                           get_world_size, is_main_process)
from torch import Tensor, nn

from us3l_mm.models.layers import Subnet, SubnetLike, at, evaluation_mode
from .gates import GateTally
from .progress import count_images
from .spool import Spool

RAW_PIXELS_SIZE = 32
# The name of the identities among the features.
IDENTITY = 'identity'
# Bytes that processes send at a time, all together.
MESSAGE_SIZE = 2**26
Key = TypeVar('Key', bound=Hashable)


def extract_features(network: nn.Module, batches: Iterable[tuple],
                     subnets: Sequence[SubnetLike], size: Optional[int] = None,
                     progress: Optional[str] = None
                     ) -> Tuple[Dict[Subnet, np.ndarray], np.ndarray]:
    """Features of ``network`` at all ``subnets``, averaged over the image.

    Args:
        network (nn.Module): A backbone with the statistics of these
            sub-networks; it runs in evaluation mode. Its last or only map is
            pooled.
        batches (iterable[tuple]): Preprocessed images (N, 3, H, W) and labels
            (N, ).
        subnets (sequence): The sub-networks, or their widths.
        size (int, optional): Number of images in the data set, see
            :func:`encode`.
        progress (str, optional): The text before a progress bar. Defaults to
            None for no bar.

    Returns:
        tuple: ``{subnet: float32 array (images, c)}`` and the labels, an
        integer array (images, ); see :func:`encode`.
    """
    encoders = {
        subnet: encoder(network, subnet) for subnet in map(Subnet.of, subnets)}
    features, labels = encode(encoders, batches, size, progress)
    features.pop(IDENTITY, None)
    return features, labels


def encode(encoders: Dict[Key, Callable[[Tensor],
                                        Tensor]], batches: Iterable[tuple],
           size: Optional[int] = None, progress: Optional[str] = None
           ) -> Tuple[Dict[Any, np.ndarray], np.ndarray]:
    """The outputs of each of ``encoders`` for all images, in one pass.

    Process r is expected to have read the samples r, r + processes, ..., as
    MMEngine's ``DefaultSampler`` distributes them; samples that it repeats to
    fill up the last round are cut off.

    Each process keeps the features of its images, and sends them to the main
    process in the end, one set of features after the other, 64 MiB at a
    time. Sets of more than 256 MiB are in temporary files, here as there, so
    that memory hardly grows with the images: see
    :class:`~us3l_mm.evaluation.spool.Spool`. A set that is not referred to
    any more takes no space.

    Args:
        encoders (dict): By name, functions of images (N, 3, H, W) to features
            (N, c).
        batches (iterable[tuple]): Images and labels, and if there are any,
            their identities (N, 2), which are returned as 'identity'.
        size (int, optional): Number of images over all processes. Defaults to
            None for all that come.
        progress (str, optional): The text before a progress bar. Defaults to
            None for no bar.

    Returns:
        tuple: ``{name: float32 array (images, c)}`` and labels (images, ), in
        the order of the data set. The main process has those of all images;
        in the other processes both are empty.

    Raises:
        ValueError: If there are no images, or processes do not have equal
            shares of them.
        OSError: If there is no space for temporary files.
    """
    spools: Dict[Any, Spool] = {name: Spool() for name in encoders}
    labels, identities = Spool(), Spool()
    with torch.no_grad():
        for images, batch_labels, *known in count_images(
                batches, progress, size):
            labels.add(np.asarray(batch_labels))
            for rows in known:
                identities.add(rows)
            # A device is given the work of all before the first one is read.
            outputs = [pooled(images).float() for pooled in encoders.values()]
            for name, output in zip(encoders, outputs):
                spools[name].add(output.cpu().numpy())
    if not labels.length:
        raise ValueError('No images to extract features from: the loader is '
                         'empty.')
    if identities.length:
        spools[IDENTITY] = identities
    gathered = {
        name: _gather(spools.pop(name).array(), size) for name in list(spools)}
    return (gathered if is_main_process() else {}, _gather(
        labels.array(), size))


def encoder(network: Any, subnet: SubnetLike,
            tally: Optional[GateTally] = None) -> Callable[[Tensor], Tensor]:
    """The pooled features of ``network`` at ``subnet``, as a function.

    ``tally`` counts what the gates of a gated sub-network leave on meanwhile.
    """

    def pooled(images: Tensor) -> Tensor:
        with evaluation_mode(network), at(network, subnet):
            if tally is None:
                maps = network(images)
            else:
                maps, gatings = network.forward_gated(images)
                tally.add(gatings, network.compute(tuple(images.shape[-2:])))
        last = maps[-1] if isinstance(maps, (tuple, list)) else maps
        return last.flatten(2).mean(dim=2) if last.ndim > 2 else last

    return pooled


def raw_pixels(images: Tensor) -> Tensor:
    """The pixels themselves as features, (N, 3, H, W) to (N, c).

    Larger images are averaged to 32 pixels: nearest neighbours among more
    pixels would not fit into memory, and would not be more meaningful.
    """
    size = [min(side, RAW_PIXELS_SIZE) for side in images.shape[-2:]]
    return F.adaptive_avg_pool2d(images, size).flatten(1)


def _gather(own: np.ndarray, size: Optional[int]) -> np.ndarray:
    """Rows of all processes in the order of the data set, in the main one."""
    processes = get_world_size()
    if processes == 1:
        return own[:size]
    shares = all_gather_object(len(own))
    total = sum(shares)
    if shares != [
            len(range(rank, total, processes)) for rank in range(processes)]:
        raise ValueError(
            f'Processes read {shares} images; the samples of a data set are '
            "dealt out to them in turn. Use sampler=dict(type='DefaultSampler'"
            ', shuffle=False).')
    whole, device = Spool(), get_comm_device()
    step = max(MESSAGE_SIZE // (processes * own[:1].nbytes), 1)
    for start in range(0, max(shares), step):
        rows = torch.from_numpy(own[start:start + step])
        # As long as those of the first process, which has most.
        length = min(step, shares[0] - start)
        part = rows.new_zeros(length, *rows.shape[1:])
        part[:len(rows)] = rows
        parts = gather(part.to(device))
        if parts:  # (length, processes, ...), in the order of the data set
            dealt = torch.stack(parts, dim=1).flatten(0, 1).cpu().numpy()
            whole.add(dealt[:total - processes * start])
    if is_main_process():
        return whole.array()[:size]
    return np.empty((0, *own.shape[1:]), own.dtype)
