# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The one training step of all algorithms: a list of passes over a batch."""
from dataclasses import dataclass, field
from typing import Any, Dict, Union

from torch import Tensor, nn

from us3l_mm.models.layers import at
from .plan import Plan

UPDATE_MODES = ('sequential', 'accumulate')


@dataclass
class Batch:
    """What the passes over one batch have in common.

    Attributes:
        views (Any): The preprocessed images, as the algorithm takes them.
        plan (Plan): What this training step does.
        student_moved (bool): Whether the optimizer has stepped since the
            batch before; False between the batches of one accumulated update.
        targets (dict): What ``begin`` computes for the passes.
        carried (dict): Detached tensors that passes leave for later ones.
    """

    views: Any
    plan: Plan
    student_moved: bool = True
    targets: dict = field(default_factory=dict)
    carried: dict = field(default_factory=dict)


def run_passes(algorithm: nn.Module, forward: nn.Module, data: dict,
               optim_wrapper) -> Dict[str, Union[Tensor, float]]:
    """Train on one batch, all sub-networks of the plan in turn.

    A pass is forward and backward, so the memory of one graph is in use at a
    time, that of the widest network.

    Args:
        algorithm (nn.Module): An algorithm with the methods of
            :class:`MultiPassSSL`.
        forward (nn.Module): The algorithm, or the distributed wrapper around
            it, which a pass must go through.
        data (dict): A batch of the loader, with the ``plan`` that a hook has
            put there.
        optim_wrapper (MultiPassOptimWrapper): Steps after each pass
            (``update_mode='sequential'``, as in US3L), or after the last one
            with the sum of all gradients (``'accumulate'``, as in US-Nets).

    Returns:
        dict: The log: ``loss`` and its parts summed over the passes, widths,
        stage, and what the passes report.
    """
    data = dict(data)
    plan = data.pop('plan', None) or algorithm.default_plan
    batch = Batch(algorithm.views(data), plan, optim_wrapper.begins_update)
    log: Dict[str, Union[Tensor, float]] = dict(loss=0.0, stage=plan.stage)
    with optim_wrapper.optim_context(algorithm):
        algorithm.begin(batch)
    optim_wrapper.begin_batch(plan, algorithm.update_mode)
    for index, pass_ in enumerate(plan.passes):
        optim_wrapper.begin_pass(pass_, is_last=index + 1 == len(plan.passes))
        # The width stays until the backward pass is over, as activation
        # checkpointing runs the layers again.
        with at(algorithm, pass_.subnet):
            with optim_wrapper.optim_context(forward):
                output = forward(batch, mode='loss', pass_=pass_)
            losses = output['losses']
            total = pass_.weight * sum(losses.values())
            optim_wrapper.update_pass(total, losses)
        batch.carried.update(output.get('carried', {}))
        for name, value in dict(losses, loss=total).items():
            log[name] = log.get(name, 0.0) + value.detach()
        log[f'width_{pass_.name}'] = pass_.subnet.width
        log.update(output.get('log', {}))
    algorithm.end(batch)
    for name, value in optim_wrapper.end_batch().items():
        log[name] = value
        if name.startswith('loss'):
            log['loss'] = log['loss'] + value
    return log
