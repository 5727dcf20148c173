# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Schedules of a run whose epochs have another number of iterations now."""
import warnings

from mmengine.runner import Runner


def restart_schedules(runner: Runner, checkpoint: dict, iterations: int,
                      epoch_length: int) -> None:
    """Put the schedules of this run into ``checkpoint``.

    A saved schedule counts iterations of the run that wrote it; with another
    number of iterations in an epoch it would end too early or too late.

    Args:
        runner (Runner): The Runner before it resumes, with new schedulers and
            a new optimizer.
        checkpoint (dict): What it is about to resume from; changed in place.
        iterations (int): Iterations to advance the schedules by.
        epoch_length (int): Iterations of an epoch.
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
    names = {
        name
        for s in schedulers
        for name in (s.param_name, f'initial_{s.param_name}')
    }
    for saved, group in zip(checkpoint['optimizer']['param_groups'],
                            runner.optim_wrapper.param_groups):
        saved.update({name: group[name] for name in names if name in group})
