# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Features of many sub-networks, in one pass over the data."""
from typing import (Any, Callable, Dict, Hashable, Iterable, List, Optional,
                    Sequence, Tuple, TypeVar)

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import gather_object, is_main_process
from torch import Tensor, nn

from us3l_mm.models.layers import Subnet, SubnetLike, at, evaluation_mode
from .gates import GateTally
from .progress import count_images

RAW_PIXELS_SIZE = 32
# The name of the identities among the features.
IDENTITY = 'identity'
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
    """
    parts: Dict[Key, List[np.ndarray]] = {name: [] for name in encoders}
    labels: List[np.ndarray] = []
    identities: List[np.ndarray] = []
    with torch.no_grad():
        for images, batch_labels, *known in count_images(
                batches, progress, size):
            labels.append(np.asarray(batch_labels))
            identities += known
            for name, encoder_of_name in encoders.items():
                parts[name].append(
                    encoder_of_name(images).float().cpu().numpy())
    if not labels:
        raise ValueError('No images to extract features from: the loader is '
                         'empty.')
    gathered: Dict[Any, np.ndarray] = {
        name: _gather(parts.pop(name), size) for name in encoders}
    if identities:
        gathered[IDENTITY] = _gather(identities, size)
    return gathered if is_main_process() else {}, _gather(labels, size)


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


def _gather(batches: List[np.ndarray], size: Optional[int]) -> np.ndarray:
    """Rows of all processes in the order of the data set, in the main one."""
    own = np.concatenate(batches)
    parts = gather_object(own)
    if parts is None:
        return own[:0]
    rows = np.empty((sum(map(len, parts)), *own.shape[1:]), own.dtype)
    for rank, part in enumerate(parts):
        rows[rank::len(parts)] = part
    return rows[:size]
