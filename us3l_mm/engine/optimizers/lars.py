# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from collections import defaultdict
from typing import Any, Callable, Dict, Iterable, List, Optional

import torch
from torch import Tensor
from torch.optim import Optimizer

from us3l_mm.registry import OPTIMIZERS

EPS = 1e-8


@OPTIMIZERS.register_module()
class LARS(Optimizer):
    """SGD with momentum whose rate adapts to each layer.

    A parameter p with the gradient g has the factor ``a = eta |p| / (|g| +
    weight_decay |p| + 1e-8)``, or 1 if p or g is zero. A step is ``v =
    momentum v + a (g + weight_decay p)`` and ``p = p - lr v``, where v is 0 at
    first. Source: LARS, arXiv 1708.03888, algorithm 1.

    It differs from MMPretrain's ``LARS`` in three points. The momentum is that
    of PyTorch's SGD, so that the learning rate of a step is that of the whole
    update; the two are equal while the learning rate does not change. Nothing
    is read from the device. Parameters that have the same options are updated
    together.

    Args:
        params (iterable): Parameters, or groups of them.
        lr (float): The learning rate.
        momentum (float): Defaults to 0.0.
        weight_decay (float): Defaults to 0.0.
        eta (float): The trust coefficient. Defaults to 0.001.
        clip (bool): Whether ``lr * a`` is at most ``lr``: the factor becomes
            ``min(a / lr, 1)``, so that ``eta |p| / ...`` is the rate of the
            layer, and the learning rate its upper limit. Source: solo-learn
            and dense + gated SSL, arXiv 2301.09164. Defaults to False.
        exclude_flat (bool): Whether parameters of one dimension, which are
            biases and those of norms, have the factor 1 and no weight decay.
            Defaults to False.

    Raises:
        ValueError: For a negative value, or for MMPretrain's option
            ``lars_exclude`` of a group.
    """

    def __init__(self, params: Iterable, lr: float, momentum: float = 0.0,
                 weight_decay: float = 0.0, eta: float = 1e-3,
                 clip: bool = False, exclude_flat: bool = False):
        for name, value in (('lr', lr), ('momentum', momentum),
                            ('weight_decay', weight_decay), ('eta', eta)):
            if not value >= 0:
                raise ValueError(f'{name} is at least 0, got {value}.')
        super().__init__(
            params,
            dict(lr=lr, momentum=momentum, weight_decay=weight_decay, eta=eta,
                 clip=clip, exclude_flat=exclude_flat))

    def add_param_group(self, param_group: Dict[str, Any]) -> None:
        """Add parameters, as in every optimizer."""
        if 'lars_exclude' in param_group:
            raise ValueError(
                'us3l_mm.LARS does not know lars_exclude. Set '
                'optimizer.exclude_flat=True to leave out biases and norms.')
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Optional[Callable] = None) -> Optional[Tensor]:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        alike: Dict[tuple, List[Tensor]] = defaultdict(list)  # by options
        for group in self.param_groups:
            rates = group['lr'], group['momentum']
            decay = group['weight_decay'], group['eta'], group['clip']
            for p in group['params']:
                if p.grad is not None:
                    flat = group['exclude_flat'] and p.ndim < 2
                    key = (*rates, *((0.0, None, False) if flat else decay),
                           p.dtype, p.device)
                    alike[key].append(p)
        for key, params in alike.items():
            self._update(params, *key[:-2])
        return loss

    def _update(self, params: List[Tensor], lr: float, momentum: float,
                weight_decay: float, eta: Optional[float], clip: bool) -> None:
        """Update ``params`` together; ``eta`` is None for no adaptation."""
        gradients = [p.grad for p in params]
        updates = torch._foreach_add(gradients, params, alpha=weight_decay)
        if eta is not None:
            size, slope = (torch.stack(torch._foreach_norm(tensors))
                           for tensors in (params, gradients))
            factor = eta * size / (slope + weight_decay * size + EPS)
            if clip:
                factor = (factor / lr).clamp(max=1)
            factor = factor.where((size > 0) & (slope > 0), 1.0)
            torch._foreach_mul_(updates, [*factor])
        if momentum:
            for p in params:
                if 'momentum_buffer' not in self.state[p]:
                    self.state[p]['momentum_buffer'] = torch.zeros_like(p)
            buffers = [self.state[p]['momentum_buffer'] for p in params]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, updates)
            updates = buffers
        torch._foreach_add_(params, updates, alpha=-lr)
