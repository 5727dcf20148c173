# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Where in the data a run is, whatever its number of processes."""
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader


@dataclass(frozen=True)
class Layout:
    """How a pass over the data is cut into steps of all processes.

    Step i of the processes together takes the images from ``i * step`` on of
    one common order: process r reads every ``processes``-th from the r-th.

    Attributes:
        num_images (int): Of the data set.
        batch_size (int): Of a process.
        processes (int): How many there are.
        drop_last (bool): Whether an incomplete batch is left out.
    """

    num_images: int
    batch_size: int
    processes: int
    drop_last: bool

    @property
    def step(self) -> int:
        """Images of a step, over all processes."""
        return self.batch_size * self.processes

    def steps_left(self, start: int = 0) -> int:
        """Steps of a pass that leaves out its first ``start`` images."""
        images = max(self.num_images - start, 0)
        each = -(-images // self.processes)
        if self.drop_last:
            return each // self.batch_size
        return -(-each // self.batch_size)


class Passes:
    """An endless iterator over a loader, which knows where it is.

    In place of the one in MMEngine's ``IterBasedTrainLoop``.

    Args:
        loader (DataLoader): Over a ``SeededSampler``.
        step (int): Images of a step, over all processes.
        epoch (int): Passes that are over. Defaults to 0.
        samples (int): Images of the current one that are over, of all
            processes. Defaults to 0.
    """

    def __init__(self, loader: DataLoader, step: int, epoch: int = 0,
                 samples: int = 0):
        self.loader, self.step = loader, step
        self.epoch, self.samples = epoch, samples
        self._iterator = None

    def __iter__(self) -> 'Passes':
        return self

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = self._begin()
        try:
            batch = next(self._iterator)
        except StopIteration:
            self.epoch, self.samples = self.epoch + 1, 0
            self._iterator = self._begin()
            batch = next(self._iterator)
        self.samples += self.step
        return batch

    def _begin(self):
        self.loader.sampler.set_epoch(self.epoch)
        self.loader.sampler.start_at(self.samples)
        if self.loader.generator is not None:
            self.loader.generator.manual_seed(self.epoch)
        return iter(self.loader)

    def skip_iter(self, num_iters: int) -> None:
        """MMEngine asks for it on resuming; this one begins there anyway."""
