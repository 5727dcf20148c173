# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Features at many widths, with one pass over the data."""
from typing import (Callable, Dict, Hashable, Iterable, List, Optional,
                    Sequence, Tuple)

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import all_gather_object
from torch import Tensor, nn

from us3l_mm.models.layers import at_width
from .progress import count_images

RAW_PIXELS_SIZE = 32


def extract_features(
    network: nn.Module, batches: Iterable[tuple], widths: Sequence[float],
    size: Optional[int] = None, progress: Optional[str] = None
) -> Tuple[Dict[float, np.ndarray], np.ndarray]:
    """Globally average-pooled features of ``network`` at all ``widths``.

    Args:
        network (nn.Module): A backbone; it runs in evaluation mode, so it has
            statistics of these widths. Its last (or only) map is pooled.
        batches (iterable[tuple]): Preprocessed images (N, 3, H, W) and labels
            (N, ).
        widths (sequence[float]): The widths.
        size (int, optional): Images of the data set, see :func:`encode`.
        progress (str, optional): What to write before a progress bar.
            Defaults to None: no bar.

    Returns:
        tuple: ``{width: float32 array (images, c)}`` and the labels, an
        integer array (images, ).
    """
    encoders = {width: encoder(network, width) for width in widths}
    return encode(encoders, batches, size, progress)


def encode(
    encoders: Dict[Hashable, Callable[[Tensor],
                                      Tensor]], batches: Iterable[tuple],
    size: Optional[int] = None, progress: Optional[str] = None
) -> Tuple[Dict[Hashable, np.ndarray], np.ndarray]:
    """What each of ``encoders`` makes of all images, in one pass.

    Every process gets the result of all. Process r is expected to have read
    the samples r, r + processes, ... as MMEngine's ``DefaultSampler`` deals
    them; what it deals twice to even out the processes is cut off.

    Args:
        encoders (dict): By name, functions of images (N, 3, H, W) to features
            (N, c).
        batches (iterable[tuple]): Images and labels.
        size (int, optional): How many images there are over all processes;
            None for as many as come.
        progress (str, optional): What to write before a progress bar.
            Defaults to None: no bar.

    Returns:
        tuple: ``{name: float32 array (images, c)}`` and labels (images, ).
    """
    parts, labels = {name: [] for name in encoders}, []
    with torch.no_grad():
        for images, batch_labels in count_images(batches, progress, size):
            labels.append(np.asarray(batch_labels))
            for name, encoder_of_name in encoders.items():
                parts[name].append(
                    encoder_of_name(images).float().cpu().numpy())
    if not labels:
        raise ValueError('No images to extract features from: the loader is '
                         'empty.')
    features = {
        name: _deal_back(np.concatenate(part), size)
        for name, part in parts.items()
    }
    return features, _deal_back(np.concatenate(labels), size)


def encoder(network: nn.Module, width: float) -> Callable[[Tensor], Tensor]:
    """The pooled features of ``network`` at ``width``, as a function."""

    def pooled(images: Tensor) -> Tensor:
        modes = [(module, module.training) for module in network.modules()]
        network.eval()
        try:
            with at_width(network, width):
                maps = network(images)
        finally:
            for module, mode in modes:
                module.training = mode
        last = maps[-1] if isinstance(maps, (tuple, list)) else maps
        return last.flatten(2).mean(dim=2) if last.ndim > 2 else last

    return pooled


def raw_pixels(images: Tensor) -> Tensor:
    """The pixels themselves as features, (N, 3, H, W) to (N, c).

    Larger images are averaged down to 32 pixels, where nearest neighbours
    among all pixels would neither fit into memory nor mean more.
    """
    size = [min(side, RAW_PIXELS_SIZE) for side in images.shape[-2:]]
    return F.adaptive_avg_pool2d(images, size).flatten(1)


def _deal_back(part: np.ndarray, size: Optional[int]) -> np.ndarray:
    """Rows of all processes in the order of the data set."""
    parts: List[np.ndarray] = all_gather_object(part)
    rows = np.empty((sum(map(len, parts)), *part.shape[1:]), part.dtype)
    for rank, own in enumerate(parts):
        rows[rank::len(parts)] = own
    return rows[:size]
