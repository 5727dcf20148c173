# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from copy import deepcopy
from typing import Optional, Tuple

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from us3l_mm.export import slice_network
from us3l_mm.models import ActiveChannels
from us3l_mm.models.layers import Subnet, SubnetLike

LAYOUTS = torch.contiguous_format, torch.channels_last


def width_latency(network: nn.Module, subnet: SubnetLike,
                  input_size: Tuple[int, int], batch_size: int = 1,
                  min_run_time: float = 0.5,
                  images: Optional[Tensor] = None) -> float:
    """Milliseconds that ``network`` takes for a batch, sliced to ``subnet``.

    The ordinary network to be deployed is timed, a copy with plain layers, on
    the device of ``network``, in the faster memory layout, see
    :func:`latency`. A gated network computes only the channels that
    are on, see :class:`~us3l_mm.models.backbones.ActiveChannels`, so that its
    time depends on the images.

    Args:
        network (nn.Module): A slimmable network, which is not changed.
        subnet (Subnet, float or str): The sub-network, or its width.
        input_size (tuple[int, int]): Height and width in pixels.
        batch_size (int): Number of images in a batch. Defaults to 1.
        min_run_time (float): Seconds to measure for. Defaults to 0.5.
        images (Tensor, optional): Preprocessed images (N, 3, H, W) to take
            the mean time of, batch by batch, for a gated network. Defaults to
            one batch of normal noise, whose masks are not those of real
            images.
    """
    if Subnet.of(subnet).gated and hasattr(network, 'forward_gated'):
        plain: nn.Module = ActiveChannels(network)
    else:
        plain = slice_network(network, subnet, without_statistics=True).eval()
    if images is None:
        images = torch.randn(batch_size, 3, *input_size,
                             generator=torch.Generator().manual_seed(0))
    return latency(plain, images, batch_size, min_run_time)


@torch.no_grad()
def latency(network: nn.Module, images: Tensor, batch_size: int = 1,
            min_run_time: float = 0.5) -> float:
    """Milliseconds that ``network`` takes for a batch, the mean of several.

    A copy is timed on the device of ``network``, in the contiguous and in the
    channels-last memory layout, and the faster one counts. The outputs are
    the same but for rounding. Anyone can convert a network by
    ``network.to(memory_format=torch.channels_last)``; images need not be
    converted, as the first convolution gives its output the layout of its
    weights.

    A time is the median that
    :meth:`torch.utils.benchmark.Timer.blocked_autorange` measures after a
    warm-up.

    Args:
        network (nn.Module): In evaluation mode; it is not changed.
        images (Tensor): Preprocessed images (N, 3, H, W).
        batch_size (int): Number of images in a batch. Defaults to 1.
        min_run_time (float): Seconds to measure for. Defaults to 0.5.
    """
    network, times = deepcopy(network), []
    batches = images.to(next(network.parameters()).device).split(batch_size)
    for layout in LAYOUTS:
        network.to(memory_format=layout)
        timer = Timer('for batch in batches: network(batch)', globals=dict(
            network=network, batches=batches),
                      num_threads=torch.get_num_threads())
        measured = timer.blocked_autorange(min_run_time=min_run_time /
                                           len(LAYOUTS))
        times.append(measured.median)
    return 1000 * min(times) / len(batches)


def check_device(device: str) -> None:
    """Raise ValueError unless this machine has ``device``."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'The device {device!r} is not available here '
                         f'({str(error).splitlines()[0]}).') from None


def device_name(device: str) -> str:
    """The name of ``device`` in a report."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f'{device}, {threads} thread{"s" if threads > 1 else ""}'
