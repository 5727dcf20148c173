# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The position of a run in its data, for any number of processes."""
from dataclasses import dataclass

from mmengine.dist import get_world_size
from torch.utils.data import DataLoader


@dataclass(frozen=True)
class Layout:
    """How a pass over the data is divided into steps of all processes.

    Step i of the processes together takes the images from ``i * step`` on of
    one common order: process r reads every ``processes``-th from the r-th.

    Attributes:
        num_images (int): Images of the data set.
        batch_size (int): Images of a batch of one process.
        processes (int): Number of processes.
        drop_last (bool): Whether an incomplete batch is left out.
    """

    num_images: int
    batch_size: int
    processes: int
    drop_last: bool

    @classmethod
    def of(cls, loader: DataLoader) -> 'Layout':
        """The layout of ``loader`` on the processes of this run."""
        batches = loader.batch_sampler
        # Batch samplers other than PyTorch's may have neither attribute.
        return cls(len(loader.dataset), getattr(batches, 'batch_size', 1),
                   get_world_size(), getattr(batches, 'drop_last', False))

    @property
    def step(self) -> int:
        """Images of a step, over all processes."""
        return self.batch_size * self.processes

    def steps_left(self, start: int = 0) -> int:
        """Steps of a pass that leaves out its first ``start`` images."""
        each = -(-max(self.num_images - start, 0) // self.processes)
        return (each if self.drop_last else each + self.batch_size -
                1) // self.batch_size
