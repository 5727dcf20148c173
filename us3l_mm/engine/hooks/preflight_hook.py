# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmpretrain.models import BaseSelfSupervisor
from mmpretrain.utils import get_ori_model

from us3l_mm.engine.agreement import check_agreement
from us3l_mm.engine.wrappers import (MultiPassDistributedDataParallel,
                                     MultiPassOptimWrapper)
from us3l_mm.models.selfsup import check_views
from us3l_mm.registry import HOOKS
from .compile_hook import CompileHook


@HOOKS.register_module()
class PreflightHook(Hook):
    """Refuse settings that would train something else, before training.

    These are a distributed wrapper that trains the full width alone, a
    conversion to SyncBatchNorm, frozen norms, an optimizer wrapper that does
    not count passes, re-entrant activation checkpoints, a compilation of the
    whole step, a pipeline without two views, and processes that disagree about
    what they train.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Check the run as it was built."""
        if is_model_wrapper(runner.model) and not isinstance(
                runner.model, MultiPassDistributedDataParallel):
            raise ValueError(
                f'{type(runner.model).__name__} does not run the passes of a '
                'slimmable training step. Set model_wrapper_cfg=dict(type='
                "'us3l_mm.MultiPassDistributedDataParallel').")
        if runner.cfg.get('sync_bn') is not None:
            raise ValueError(
                f'sync_bn={runner.cfg.sync_bn!r} would replace the slimmable '
                'batch norms by plain ones. Remove it, and set '
                'model.sync_norms=True for statistics over all processes.')
        check_agreement(runner)
        algorithm = get_ori_model(runner.model)
        for name, off in (('norm_eval', False), ('frozen_stages', -1)):
            value = getattr(algorithm.backbone, name, off)
            if value != off:
                raise ValueError(
                    f'backbone.{name}={value} freezes batch norms, which '
                    'would need statistics of every width that is drawn. '
                    f'Pre-train with {name}={off}; freeze a network of one '
                    'width.')
        if not isinstance(runner.optim_wrapper, MultiPassOptimWrapper):
            raise ValueError(
                f'{type(runner.optim_wrapper).__name__} does not count the '
                "passes of a training step. Set optim_wrapper.type='us3l_mm."
                "MultiPassOptimWrapper', or in mixed precision 'us3l_mm."
                "MultiPassAmpOptimWrapper'; --amp of MMPretrain's own tool "
                'replaces it, that of ours does not.')
        runner.optim_wrapper.check(algorithm.update_mode)
        if runner.cfg.get('activation_checkpointing') is not None:
            raise ValueError(
                'activation_checkpointing makes re-entrant checkpoints, which '
                'train nothing in a network whose input needs no gradient, '
                'and which distributed training cannot see into. Remove it, '
                'and set model.backbone.with_cp=True.')
        if runner.cfg.get('compile') and not any(
                isinstance(hook, CompileHook) for hook in runner.hooks):
            raise ValueError(
                'compile without CompileHook would compile the whole training '
                'step, and give up after a few widths. Add '
                "default_hooks.compile=dict(type='us3l_mm.CompileHook').")
        if not isinstance(algorithm, BaseSelfSupervisor):
            return  # a detector of many widths
        loader = runner.train_dataloader
        algorithm.check_batch(loader.batch_size * get_world_size())
        views = loader.dataset[next(iter(loader.sampler))].get('inputs')
        check_views(views)
        for view in views:
            algorithm.check_image_size(tuple(view.shape[-2:]))
