# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What a checkpoint is to the run that resumes from it."""
import warnings
from dataclasses import dataclass

from mmengine.dist import get_world_size
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model
from torch.utils.data import DataLoader

from us3l_mm.fileio import check_fit
from us3l_mm.models.backbones.weights import adapt_weights
from .mmengine_internals import start_file


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


def check_checkpoint(runner: Runner, checkpoint: dict) -> None:
    """Refuse to resume from another network's file, or beyond the end.

    MMEngine goes on without what a file lacks.

    Raises:
        ValueError: With what is missing.
    """
    path, advice = start_file(runner), (
        'Resume with the config of its run, or begin from its weights by '
        '--cfg-options load_from=FILE, without --resume.')
    for key in ('optimizer', 'message_hub', 'meta'):
        if key not in checkpoint:
            raise ValueError(f'{path} has no {key!r}, so training cannot go '
                             f'on from it. {advice}')
    model = get_ori_model(runner.model)
    own = {
        name: parameter for name, parameter in model.named_parameters()
        if not name.startswith('teacher.')}  # the student can replace it
    given = adapt_weights(model, checkpoint['state_dict'])
    if own and not own.keys() & given.keys():
        raise ValueError(f'{path} has no parameter of this '
                         f'{type(model).__name__}. {advice}')
    check_fit(own, given, type(model).__name__, advice, str(path))
    done = checkpoint['meta']['iter']
    if done > runner.max_iters:
        raise ValueError(
            f'{path} was saved after {done} iterations, and this run ends '
            f'after {runner.max_iters}. Set train_cfg.max_epochs (or '
            'max_iters) to more, or resume from an earlier checkpoint.')
    if done == runner.max_iters:
        runner.logger.warning(
            f'{path} is from the end of training, iteration {done}: there is '
            'nothing left to train. Set train_cfg.max_epochs (or max_iters) '
            'to more to go on.')
