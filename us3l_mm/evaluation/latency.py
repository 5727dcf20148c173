# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Tuple

import torch
from torch import nn
from torch.utils.benchmark import Timer

from us3l_mm.export import slice_network
from us3l_mm.models.layers import SubnetLike


@torch.no_grad()
def width_latency(network: nn.Module, subnet: SubnetLike,
                  input_size: Tuple[int, int], batch_size: int = 1,
                  min_run_time: float = 0.5) -> float:
    """Milliseconds that ``network`` takes for a batch, sliced to ``subnet``.

    The ordinary network to be deployed is timed, a copy with plain layers, on
    the device of ``network``: the median that
    :meth:`torch.utils.benchmark.Timer.blocked_autorange` measures, after a
    warm-up.

    Args:
        network (nn.Module): A slimmable network, which is not changed.
        subnet (Subnet, float or str): The sub-network, or its width.
        input_size (tuple[int, int]): Height and width in pixels.
        batch_size (int): Number of images in a batch. Defaults to 1.
        min_run_time (float): Seconds to measure for. Defaults to 0.5.
    """
    plain = slice_network(network, subnet, without_statistics=True).eval()
    device = next(plain.parameters()).device
    images = torch.zeros(batch_size, 3, *input_size, device=device)
    timer = Timer('plain(images)', globals=dict(plain=plain, images=images),
                  num_threads=torch.get_num_threads())
    return 1000 * timer.blocked_autorange(min_run_time=min_run_time).median


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
