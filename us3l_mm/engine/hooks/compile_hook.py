# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from contextlib import AbstractContextManager, nullcontext
from typing import Optional

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from us3l_mm.models.layers import slimmable_layers
from us3l_mm.registry import HOOKS
from .dynamic_sampler_hook import DynamicSamplerHook


@HOOKS.register_module()
class CompileHook(Hook):
    """Compile the networks as the config's ``compile`` says.

    MMEngine would compile ``train_step`` as a whole, with backward passes and
    changes of the width, and give up after eight widths. This hook calls
    ``module.compile()`` of backbone and projector, in student and teacher,
    which compiles them once for each width; a width grid keeps the number of
    widths small. ``compile`` is True or a dict of arguments of
    ``torch.compile``; ``dynamic`` defaults to False.
    """

    priority = 'VERY_LOW'  # after the sampler has checked its widths

    def before_train(self, runner: Runner) -> None:
        """Compile the networks in place of what MMEngine has compiled."""
        options = runner.cfg.get('compile')
        algorithm = get_ori_model(runner.model)
        if not options or not hasattr(algorithm, 'update_mode'):
            return
        vars(runner.model).pop('train_step', None)  # MMEngine's
        options = {} if options is True else dict(options)
        count = self._count_widths(runner, algorithm)
        # For student and teacher, and some for whatever else may change.
        graphs, config = 2 * count + 8, torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, graphs)
        config.accumulated_recompile_limit = max(
            config.accumulated_recompile_limit, 8 * graphs)
        for owner in (algorithm, getattr(algorithm, 'teacher', None)):
            for name in ('backbone', 'neck'):
                module = getattr(owner, name, None)
                if module is not None:
                    module.compile(**{'dynamic': False, **options})

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: Optional[dict] = None) -> None:
        """Discard measured statistics, which compiled norms cannot do."""
        if runner.cfg.get('compile'):
            for layer in slimmable_layers(get_ori_model(runner.model)):
                if layer.measured_subnets():
                    layer.clear_statistics()

    def _count_widths(self, runner: Runner, algorithm: torch.nn.Module) -> int:
        """The number of widths that training can draw."""
        for hook in runner.hooks:
            if isinstance(hook, DynamicSamplerHook):
                count = hook.count_widths(algorithm.backbone.width_range)
                if count is None:
                    raise ValueError(
                        'compile compiles the network anew for every width, '
                        'and DynamicSamplerHook(grid=None) draws new ones in '
                        'nearly every iteration. Set a grid, such as '
                        'grid=1/32, or leave out compile.')
                return count
        return len(algorithm.default_plan.passes)


def uncompiled(runner: Runner) -> AbstractContextManager:
    """A context that runs compiled networks without compilation.

    For evaluation they would be compiled anew for each sub-network.
    """
    if not runner.cfg.get('compile'):
        return nullcontext()
    return torch.compiler.set_stance('force_eager')
