# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from us3l_mm.models.selfsup import encode
from us3l_mm.registry import HOOKS
from .dynamic_sampler_hook import DynamicSamplerHook


@HOOKS.register_module()
class CompileHook(Hook):
    """Do what the config's ``compile`` says, width by width.

    MMEngine would compile ``train_step`` as a whole, backward passes, changes
    of the width and all, and give up after eight widths. This compiles the
    networks' part of it, :func:`~us3l_mm.models.selfsup.encode`, student and
    teacher, once for each width; a width grid keeps their number small. What
    evaluates during training runs the networks as they are.

    ``compile=True``, or a dict of arguments of ``torch.compile``; ``dynamic``
    is False unless it says otherwise.
    """

    priority = 'VERY_LOW'  # after the sampler has checked its widths

    def before_train(self, runner: Runner) -> None:
        """Replace what MMEngine has compiled."""
        options = runner.cfg.get('compile')
        algorithm = get_ori_model(runner.model)
        if not options or not hasattr(algorithm, 'encode'):
            return
        vars(runner.model).pop('train_step', None)
        options = {} if options is True else dict(options)
        count = self._count_widths(runner, algorithm)
        # By student and teacher, and some for what else may change.
        _raise_limits(2 * count + 8)
        compiled = torch.compile(encode, **{'dynamic': False, **options})
        algorithm.encode = compiled
        if algorithm.teacher is not None:
            algorithm.teacher.encode = compiled

    def _count_widths(self, runner: Runner, algorithm: torch.nn.Module) -> int:
        """How many widths training can draw; an error where that is any."""
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
        return len(algorithm.plan.subnets)


def _raise_limits(graphs: int) -> None:
    """Let PyTorch compile one function so many times before it gives up."""
    config = torch._dynamo.config
    for name, value in (('recompile_limit', graphs),
                        ('accumulated_recompile_limit', 8 * graphs)):
        setattr(config, name, max(getattr(config, name), value))
