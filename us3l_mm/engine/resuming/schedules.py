# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Schedules of a run whose epochs have another number of iterations now."""
import warnings
from typing import List

from mmengine.optim import OptimWrapper, _ParamScheduler
from mmengine.runner import Runner


def schedulers_of(runner: Runner) -> List[_ParamScheduler]:
    """The schedulers of ``runner``, built or none."""
    schedulers = runner.param_schedulers or []
    if isinstance(schedulers, dict):
        schedulers = [s for some in schedulers.values() for s in some]
    return [s for s in schedulers if isinstance(s, _ParamScheduler)]


def advance(schedulers: List[_ParamScheduler], iterations: int,
            epoch_length: int) -> None:
    """Step new schedulers as ``iterations`` of training would have.

    Those that wait for a metric of validation are left as they are.
    """
    steppable = [
        s for s in schedulers if not getattr(s, 'need_val_args', False)
    ]
    with warnings.catch_warnings():
        # The optimizer has not stepped, and PyTorch suspects a mistake.
        warnings.simplefilter('ignore', UserWarning)
        for iteration in range(1, iterations + 1):
            for scheduler in steppable:
                if not scheduler.by_epoch:
                    scheduler.step()
            if iteration % epoch_length == 0:
                for scheduler in steppable:
                    if scheduler.by_epoch:
                        scheduler.step()


def rewrite_schedules(runner: Runner, checkpoint: dict, iterations: int,
                      epoch_length: int) -> None:
    """Put the schedules of this run, ``iterations`` on, into ``checkpoint``.

    A saved schedule counts iterations of the run that wrote it; with another
    number of them in an epoch it would end too early or too late.

    Args:
        runner (Runner): Before it resumes: schedulers and optimizer are new.
        checkpoint (dict): What it is about to resume from; changed in place.
        iterations (int): How many of this run's are done.
        epoch_length (int): How many an epoch has.
    """
    schedulers = schedulers_of(runner)
    wrapper = runner.optim_wrapper
    if not (schedulers and isinstance(wrapper, OptimWrapper) and
            'param_schedulers' in checkpoint and 'optimizer' in checkpoint):
        return
    advance(schedulers, iterations, epoch_length)
    checkpoint['param_schedulers'] = [s.state_dict() for s in schedulers]
    names = {
        name
        for s in schedulers
        for name in (s.param_name, f'initial_{s.param_name}')
    }
    for saved, group in zip(checkpoint['optimizer']['param_groups'],
                            wrapper.param_groups):
        saved.update({name: group[name] for name in names if name in group})
