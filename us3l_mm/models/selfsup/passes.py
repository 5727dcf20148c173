# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The one training step of all algorithms: a list of passes over a batch."""
from contextlib import ExitStack, nullcontext
from typing import Dict, List, Tuple, Union

from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import Tensor

from us3l_mm.models.layers import at_width
from .step_guard import poisoned
from .subnet import Plan, Subnet

UPDATE_MODES = ('sequential', 'accumulate', 'joint')


def run_passes(algorithm: BaseModel, forward: Union[BaseModel,
                                                    MMDistributedDataParallel],
               data: dict,
               optim_wrapper: OptimWrapper) -> Dict[str, Union[Tensor, float]]:
    """Train on one batch, every sub-network of the plan in turn.

    A pass is forward and backward, so the memory of one graph, that of the
    widest network, is in use at a time; except in 'joint', which keeps the
    graphs of all passes for a single backward.

    Args:
        algorithm (BaseModel): Knows the ``plan``, the ``update_mode``, the
            ``regulariser``, the ``guard``, its targets and its loss.
        forward (nn.Module): What the batch must go through: the algorithm, or
            the distributed wrapper around it.
        data (dict): A batch of the loader.
        optim_wrapper (OptimWrapper): Applies the gradients: after each pass
            (``sequential``, US3L's way), or summed after the last one
            (``accumulate``, US-Nets', and ``joint``), of several batches if
            its ``accumulative_counts`` says so.

    Returns:
        dict: What to log: ``loss`` and its parts summed over the passes, the
        widths, the stage, the spread of the embeddings.
    """
    plan, update_mode = algorithm.plan, algorithm.update_mode
    check_optim_wrapper(optim_wrapper, update_mode)
    views = algorithm.views(data)
    batches = _Batches(optim_wrapper)
    # The student is that of the batch before where no step has been made.
    cache = {'student_moved': batches.first}
    log, losses_of_step = dict(loss=0.0, stage=plan.stage), {}
    rounds = ([plan.subnets] if update_mode == 'joint' else
              [(subnet, ) for subnet in plan.subnets])
    for index, subnets in enumerate(rounds):
        last = index + 1 == len(rounds)
        losses = _round(algorithm, forward, views, subnets, cache, log,
                        batches, wait=update_mode == 'accumulate' and not last)
        losses_of_step.update(losses)
        if update_mode == 'sequential' or (last and batches.last):
            done = subnets if update_mode == 'sequential' else plan.subnets
            if algorithm.guard is None:
                optim_wrapper.step()
            else:
                algorithm.guard.step(optim_wrapper, done, losses_of_step)
            optim_wrapper.zero_grad()
            losses_of_step = {}
    batches.count()
    if algorithm.guard is not None:
        log['skipped'] = algorithm.guard.total
    return log


def _round(algorithm: BaseModel, forward, views: List[Tensor],
           subnets: Tuple[Subnet, ...], cache: dict, log: dict,
           batches: '_Batches', wait: bool) -> Dict[str, Tensor]:
    """One forward and backward, of one sub-network or of all together.

    Args:
        wait (bool): Whether gradients are to be reduced over processes later,
            with those of the next round.

    Returns:
        dict: The losses by name.
    """
    optim_wrapper, regulariser = batches.optim_wrapper, algorithm.regulariser
    single = subnets[0] if len(subnets) == 1 else None
    batches.rewind()
    if single is not None:
        with optim_wrapper.optim_context(algorithm):
            targets = algorithm.targets(single, views, cache)
    with ExitStack() as stack:
        # Without this, each of the backward passes would be all-reduced.
        if wait:
            stack.enter_context(getattr(forward, 'no_sync', nullcontext)())
        # The width stays until the backward pass is over, as activation
        # checkpointing runs the layers again.
        if single is not None:
            stack.enter_context(at_width(algorithm, single.width))
        with optim_wrapper.optim_context(forward):
            outputs = ([
                forward(views, mode='loss', subnet=single, targets=targets)
            ] if single is not None else forward(
                views, mode='loss', subnet=Plan(subnets), targets=cache))
        total, losses = 0.0, {}
        for subnet, output in zip(subnets, outputs):
            parts = output['losses']
            if regulariser is not None:
                parts['loss_reg'] = regulariser.loss(subnet.is_base)
            total = total + sum(parts.values())
            log[f'width_{subnet.name}'] = subnet.width
            for name, value in parts.items():
                for record in (losses, log):
                    record[name] = record.get(name, 0.0) + value.detach()
            log.update(output['log'])
            if subnet.is_base:
                cache['online'] = output['encoded']
        log['loss'] = log['loss'] + total.detach()
        if algorithm.guard is not None:
            total = poisoned(total)
        optim_wrapper.backward(optim_wrapper.scale_loss(total))
    if regulariser is not None:
        regulariser.add_gradients()
    return losses


def joint_losses(algorithm: BaseModel, views: List[Tensor], plan: Plan,
                 cache: dict) -> List[Dict[str, dict]]:
    """Forward of all passes, for a single backward through all of them.

    What a distributed wrapper runs in its one forward: it looks for unused
    parameters in the graph of its last forward only.
    """
    outputs, cache = [], dict(cache)
    for subnet in plan.subnets:
        targets = algorithm.targets(subnet, views, cache)
        with at_width(algorithm, subnet.width):
            outputs.append(algorithm.loss(views, subnet, targets))
        if subnet.is_base:
            cache['online'] = outputs[-1]['encoded']
    return outputs


class _Batches:
    """Where a batch stands among those of an update.

    MMEngine's wrapper counts calls of ``backward``, and a batch has several.
    Here it counts batches again: each backward starts from the count before
    the batch, so that its ``scale_loss`` and ``no_sync`` are right, and the
    last, incomplete update of training is made as MMEngine makes it.
    """

    def __init__(self, optim_wrapper: OptimWrapper):
        self.optim_wrapper = optim_wrapper
        self._before = optim_wrapper._inner_count
        counts = optim_wrapper._accumulative_counts
        self.first = self._before % counts == 0
        self.last = optim_wrapper.should_sync()

    def rewind(self) -> None:
        self.optim_wrapper._inner_count = self._before

    def count(self) -> None:
        self.optim_wrapper._inner_count = self._before + 1


def check_optim_wrapper(optim_wrapper: OptimWrapper,
                        update_mode: str = 'sequential') -> None:
    """Refuse an accumulation over batches where each pass has its step."""
    counts = optim_wrapper._accumulative_counts
    if counts != 1 and update_mode == 'sequential':
        raise ValueError(
            "update_mode='sequential' makes an optimizer step after each pass "
            'of a batch, so there is no gradient to add up over batches; got '
            f'accumulative_counts={counts}. Leave it at 1, or set '
            "model.update_mode='accumulate', an update from all passes of "
            f'{counts} batches.')
