# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from collections import defaultdict
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Dict, List, Optional, Tuple

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model
from torch import Tensor, nn

from us3l_mm.engine.wrappers import MultiPassOptimWrapper
from us3l_mm.models.backbones.slicing import slice_network
from us3l_mm.models.backbones.slicing_record import SlicingRecord, cut
from us3l_mm.models.layers import KeepsOwnSubnet, Subnet, at_least_single
from us3l_mm.models.selfsup import Pass, Plan
from us3l_mm.registry import HOOKS
from .dynamic_sampler_hook import DynamicSamplerHook


@HOOKS.register_module()
class GradientDiagnosisHook(Hook):
    r"""Log how the gradients of the widths of a training step compare.

    Widths share parameters, and their gradients may differ in size and
    direction. With the gradient :math:`g_i` of pass i, and the full network's
    :math:`g_0`, the hook logs for each pass

    * ``gradient/norm_...``, :math:`\lVert g_i \rVert` on the entries that all
      passes of the step use;
    * ``gradient/share_...``, that norm divided by the sum of the norms of all
      passes;
    * ``gradient/cosine_...``, the cosine between :math:`g_i` and :math:`g_0`
      on the entries that pass i uses, for all passes but the first.

    ``SlimCLR`` adds ``grad_contrast_...`` and ``grad_distill_...`` to the log
    of such a step, the norms of the gradients of its two losses with respect
    to the queries.

    Entries are those of the sliced network, so that an entry counts even if
    its gradient is zero. A parameter that not all passes use, such as a
    private norm or the head of one pass, has none in common. Source: SlimCLR,
    arXiv 2209.15525 (gradient magnitude imbalance and gradient direction
    divergence).

    A gradient is that of the loss of one pass, with the weight of the pass,
    before gradients are accumulated, averaged over processes, regularised
    or clipped. With ``update_mode='sequential'`` the weights move between the
    passes. Of several processes, the first one logs its own gradients, those
    of its part of the batch.

    The hook does not change the training. A measured iteration keeps one copy
    of the gradients; others cost nothing. Iterations with a single pass are
    not measured.

    Args:
        interval (int): One in this number of iterations is measured. Defaults
            to 100.

    Example:
        ``tools/train.py CONFIG --cfg-options
        default_hooks.diagnosis.type=us3l_mm.GradientDiagnosisHook``
    """

    priority = 'LOW'  # after the sampler; before the networks are compiled

    def __init__(self, interval: int = 100):
        if not isinstance(interval, int) or interval < 1:
            raise ValueError('interval is a number of iterations of at least '
                             f'1, got {interval!r}.')
        self.interval = interval
        self._step: Optional[_Step] = None

    def before_train(self, runner: Runner) -> None:
        """Check the optimizer wrapper; see which parameters are sliced."""
        if not isinstance(runner.optim_wrapper, MultiPassOptimWrapper):
            raise TypeError(
                'GradientDiagnosisHook compares the passes of a training '
                f'step, and {type(runner.optim_wrapper).__name__} does not '
                "count them. Set optim_wrapper.type='us3l_mm."
                "MultiPassOptimWrapper', or remove the hook.")
        algorithm = get_ori_model(runner.model)
        for hook in runner.hooks:
            if isinstance(hook, DynamicSamplerHook):
                last = hook.plan(runner.max_iters - 1, runner.max_iters,
                                 algorithm.backbone.width_range)
                if len(last.passes) == 1:
                    raise ValueError(
                        'GradientDiagnosisHook compares the passes of a '
                        f'training step, and {type(algorithm).__name__} has '
                        f'one, of {last.base.subnet}. Remove the hook '
                        '(default_hooks.diagnosis=None).')
        self._entries = Entries(algorithm)

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: Optional[dict] = None) -> None:
        """Watch the gradients of an iteration that is to be measured."""
        if (not self.every_n_train_iters(runner, self.interval)
                or not is_main_process()):
            return
        algorithm = get_ori_model(runner.model)
        plan = (data_batch or {}).get('plan') or algorithm.default_plan
        if len(plan.passes) > 1:
            if data_batch is not None:  # losses may tell more, too
                data_batch['plan'] = replace(plan, diagnose=True)
            self._step = _Step(algorithm, plan, runner.optim_wrapper,
                               self._entries)

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Report what was measured."""
        if self._step is None:
            return
        rows, self._step = self._step.finish(), None
        scalars = {
            f'gradient/{name}_{pass_name}': value
            for pass_name, row in rows.items() for name, value in row.items()}
        for name, value in scalars.items():
            runner.message_hub.update_scalar(name, value)
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)
        runner.logger.info(f'Gradients of iteration {runner.iter + 1}: ' +
                           '; '.join(f'{pass_name}: ' +
                                     ', '.join(f'{name} {value:.3g}'
                                               for name, value in row.items())
                                     for pass_name, row in rows.items()))


class Entries:
    """Which entries of its parameters each sub-network of a network uses.

    Args:
        algorithm (nn.Module): The network. A teacher in it is left out.
    """

    def __init__(self, algorithm: nn.Module):
        student = nn.ModuleDict({
            name: child for name, child in algorithm.named_children()
            if not isinstance(child, KeepsOwnSubnet)})
        # Layers and shapes without the weights.
        self._outline = deepcopy(student).to('meta')
        self._known: Dict[Subnet, Tuple[dict, dict]] = {}

    def cut(self, name: str, value: Tensor, subnet: Subnet) -> Tensor:
        """The entries of a parameter, or of its gradient, that are in use.

        Args:
            name (str): The name of the parameter.
            value (Tensor): Of its shape.
            subnet (Subnet): The sub-network, which uses the parameter.
        """
        if subnet not in self._known:
            sliced = slice_network(self._outline, subnet,
                                   without_statistics=True)
            self._known[subnet] = ({
                key: p.shape for key, p in sliced.named_parameters()},
                                   SlicingRecord(self._outline,
                                                 subnet).row_blocks)
        shapes, blocks = self._known[subnet]
        return cut(value, shapes.get(name, value.shape), blocks.get(name))


class _Step:
    """The gradients of one training step, seen by hooks of the parameters.

    Such a hook is called once in a backward pass, with the gradient of this
    pass alone, and only for parameters that the pass uses.
    """

    def __init__(self, algorithm: nn.Module, plan: Plan,
                 optim_wrapper: MultiPassOptimWrapper, entries: Entries):
        self.plan, self.optim_wrapper = plan, optim_wrapper
        self.entries = entries
        # A wider sub-network uses all entries of a narrower one.
        self.narrowest = min((pass_.subnet for pass_ in plan.passes),
                             key=lambda subnet: subnet.width)
        self.full: Dict[str, Tensor] = {}  # gradients of the first pass
        # By pass, then by parameter.
        self.squares: Dict[Pass, Dict[str, Tensor]] = defaultdict(dict)
        self.products: Dict[Pass, List[Tensor]] = defaultdict(list)
        self.scales: Dict[Pass, float] = {}
        self.handles = [
            p.register_hook(partial(self.see, name))
            for name, p in algorithm.named_parameters() if p.requires_grad]

    def see(self, name: str, gradient: Tensor) -> None:
        """Measure the gradient of a parameter in the current pass."""
        pass_ = self.optim_wrapper.current_pass
        assert pass_ is not None  # there is a backward pass
        if pass_ not in self.scales:
            scaler = getattr(self.optim_wrapper, 'loss_scaler', None)
            self.scales[pass_] = 1.0 if scaler is None else scaler.get_scale()
        gradient = at_least_single(gradient.detach())
        common = self.entries.cut(name, gradient, self.narrowest)
        self.squares[pass_][name] = common.square().sum()
        if pass_ == self.plan.base:
            self.full[name] = gradient.clone()
        elif name in self.full:
            own, full = (self.entries.cut(name, value, pass_.subnet)
                         for value in (gradient, self.full[name]))
            self.products[pass_].append(
                torch.stack([(own * full).sum(),
                             own.square().sum(),
                             full.square().sum()]))

    def finish(self) -> Dict[str, Dict[str, float]]:
        """Remove the hooks; the figures by name of the pass."""
        for handle in self.handles:
            handle.remove()
        common = set.intersection(*(set(self.squares[pass_])
                                    for pass_ in self.plan.passes))
        norms = {
            pass_:
            sum(self.squares[pass_][name]
                for name in common)**0.5 / self.scales[pass_]
            for pass_ in self.plan.passes}
        rows = {}
        for pass_, norm in norms.items():
            row = dict(norm=norm, share=norm / sum(norms.values()))
            if pass_ != self.plan.base:
                product, own, full = sum(self.products[pass_])
                row['cosine'] = product / (own.sqrt() * full.sqrt())
            rows[pass_.name] = {k: float(value) for k, value in row.items()}
        return rows
