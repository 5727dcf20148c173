# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from statistics import median
from time import perf_counter
from typing import Tuple

import torch
from torch import nn

from us3l_mm.export import slice_network


@torch.no_grad()
def width_latency(network: nn.Module, width: float,
                  input_size: Tuple[int, int], batch_size: int = 1,
                  repeats: int = 30, warmup: int = 5) -> float:
    """Milliseconds that ``network`` takes for a batch, cut to ``width``.

    What is timed is the ordinary network that one would deploy, a copy with
    plain layers of that width, on the device of ``network``: the median over
    ``repeats`` batches, after ``warmup`` untimed ones. The clock is read when
    the device has finished.

    Args:
        network (nn.Module): A slimmable network; it stays as it is.
        width (float): The width.
        input_size (tuple[int, int]): Height and width in pixels.
        batch_size (int): Images in a batch. Defaults to 1.
        repeats (int): Timed batches. Defaults to 30.
        warmup (int): Batches before. Defaults to 5.
    """
    plain = slice_network(network, width, without_statistics=True).eval()
    device = next(plain.parameters()).device
    images = torch.zeros(batch_size, 3, *input_size, device=device)
    seconds = []
    for _ in range(warmup + repeats):
        _wait_for(device)
        start = perf_counter()
        plain(images)
        _wait_for(device)
        seconds.append(perf_counter() - start)
    return 1000 * median(seconds[warmup:])


def check_device(device: str) -> None:
    """Raise ValueError unless this machine has ``device``."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'The device {device!r} is not available here '
                         f'({str(error).splitlines()[0]}).') from None


def device_name(device: str) -> str:
    """What to call ``device`` in a report."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f'{device}, {threads} thread{"s" if threads > 1 else ""}'


def _wait_for(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
