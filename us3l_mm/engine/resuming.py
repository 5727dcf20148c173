# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The position of a run in its data and schedules, for other batch sizes."""
import warnings
from dataclasses import dataclass

from mmengine.dist import get_world_size
from mmengine.runner import Runner
from torch.utils.data import DataLoader


@dataclass(frozen=True)
class Layout:
    """How a pass over the data is divided into steps of all processes.

    Step i of the processes together takes the images from ``i * step`` on of
    one common order: process r reads every ``processes``-th from the r-th.

    Attributes:
        num_images (int): Number of images in the data set.
        batch_size (int): Number of images in a batch of one process.
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
        """Number of images in a step of all processes."""
        return self.batch_size * self.processes

    def steps_left(self, start: int = 0) -> int:
        """Number of steps in a pass without its first ``start`` images."""
        each = -(-max(self.num_images - start, 0) // self.processes)
        return (each if self.drop_last else each + self.batch_size -
                1) // self.batch_size


def restart_schedules(runner: Runner, checkpoint: dict, iterations: int,
                      epoch_length: int) -> None:
    """Put the schedules of this run into ``checkpoint``.

    A saved schedule counts iterations of the run that wrote it; with another
    number of iterations in an epoch it would end too early or too late.

    Args:
        runner (Runner): The Runner before it resumes, with new schedulers and
            a new optimizer.
        checkpoint (dict): The checkpoint to resume from; changed in place.
        iterations (int): Number of iterations to advance the schedules by.
        epoch_length (int): Number of iterations in an epoch.
    """
    schedulers = runner.param_schedulers
    if (not isinstance(schedulers, list)  # a dict for several optimizers
            or not {'param_schedulers', 'optimizer'} <= checkpoint.keys()):
        return
    with warnings.catch_warnings():
        # The optimizer has not stepped, and PyTorch suspects a mistake.
        warnings.simplefilter('ignore', UserWarning)
        for iteration in range(1, iterations + 1):
            for scheduler in schedulers:
                if getattr(scheduler, 'need_val_args', False):
                    continue  # it waits for a metric of validation
                if not scheduler.by_epoch or iteration % epoch_length == 0:
                    scheduler.step()
    checkpoint['param_schedulers'] = [s.state_dict() for s in schedulers]
    names = [
        f'{start}{s.param_name}' for s in schedulers
        for start in ('', 'initial_')]
    for saved, group in zip(checkpoint['optimizer']['param_groups'],
                            runner.optim_wrapper.param_groups):
        saved.update({name: group[name] for name in names if name in group})
