# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The one training step of all algorithms: a list of passes over a batch."""
from contextlib import nullcontext
from typing import Dict, Union

from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import Tensor

from us3l_mm.models.layers import at_width

UPDATE_MODES = ('sequential', 'accumulate')


def run_passes(algorithm: BaseModel,
               forward: Union[BaseModel, MMDistributedDataParallel],
               data: dict, optim_wrapper: OptimWrapper
               ) -> Dict[str, Union[Tensor, float]]:
    """Train on one batch, every sub-network of the plan in turn.

    A pass is forward and backward, so the memory of one graph, that of the
    widest network, is in use at a time.

    Args:
        algorithm (BaseModel): Knows the ``plan``, the ``update_mode``, the
            ``regulariser``, its targets and its loss.
        forward (nn.Module): What the batch must go through: the algorithm, or
            the distributed wrapper around it.
        data (dict): A batch of the loader.
        optim_wrapper (OptimWrapper): Applies the gradients: after each pass
            (``sequential``, US3L's way) or after the last one, summed
            (``accumulate``, US-Nets').

    Returns:
        dict: What to log: ``loss`` and its parts summed over the passes, the
        widths, the stage, the spread of the embeddings.
    """
    plan, regulariser = algorithm.plan, algorithm.regulariser
    sequential = algorithm.update_mode == 'sequential'
    check_optim_wrapper(optim_wrapper)
    views = algorithm.views(data)
    log, loss, cache = dict(stage=plan.stage), 0.0, {}
    for index, subnet in enumerate(plan.subnets):
        with optim_wrapper.optim_context(algorithm):
            targets = algorithm.targets(subnet, views, cache)
        # Without this, each of the backward passes would be all-reduced.
        wait = not sequential and index + 1 < len(plan.subnets)
        no_sync = getattr(forward, 'no_sync', nullcontext)
        # The width stays until the backward pass is over, as activation
        # checkpointing runs the layers again.
        with (no_sync() if wait else nullcontext()), at_width(
                algorithm, subnet.width):
            with optim_wrapper.optim_context(forward):
                output = forward(views, mode='loss', subnet=subnet,
                                 targets=targets)
            losses = output['losses']
            if regulariser is not None:
                losses['loss_reg'] = regulariser.loss(subnet.is_base)
            total = sum(losses.values())
            optim_wrapper.backward(total)
        if regulariser is not None:
            regulariser.add_gradients()
        if sequential or index + 1 == len(plan.subnets):
            optim_wrapper.step()
            optim_wrapper.zero_grad()
        if subnet.is_base:
            cache['online'] = output['encoded']
        loss = loss + total.detach()
        log[f'width_{subnet.name}'] = subnet.width
        for name, value in {**losses, **output['log']}.items():
            log[name] = log.get(name, 0.0) + value.detach()
    return dict(loss=loss, **log)


def check_optim_wrapper(optim_wrapper: OptimWrapper) -> None:
    """Refuse an accumulation over batches, which would mix up the passes."""
    counts = getattr(optim_wrapper, '_accumulative_counts', 1)
    if counts != 1:
        raise ValueError(
            'A training step has several passes, and accumulative_counts '
            f'counts passes, not batches; got accumulative_counts={counts}. '
            "Leave it at 1; update_mode='accumulate' sums the passes of a "
            'batch into one update.')
