# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from us3l_mm.engine.mmengine_internals import is_resuming, start_file
from us3l_mm.models.backbones.pretrained import (check_neck, check_weights,
                                                 is_known, pretrained_cfg)
from us3l_mm.registry import HOOKS


@HOOKS.register_module()
class CheckPretrainedHook(Hook):
    """Refuse to train if a backbone does not hold its pre-trained weights.

    Before the first iteration every tensor of the backbone is compared with
    the file of ``init_cfg=dict(type='Pretrained', ...)``, or with that of
    ``load_from`` if there is one. A file of another width or depth, a full
    file in a narrow network, missing keys, a wrong prefix and weights that
    were overwritten raise ValueError. A resumed run is not checked. The log
    names a backbone whose weights cannot be compared, because its class
    renames keys while it loads.

    The ``in_channels`` of the neck are compared with the backbone too, also
    before a test.
    """

    # Before hooks that change weights, such as EMAHook
    priority = 'VERY_HIGH'

    def __init__(self):
        self._checkpoint_loaded = False

    def before_run(self, runner: Runner) -> None:
        """Check the neck."""
        model = get_ori_model(runner.model)
        if hasattr(model, 'backbone'):
            check_neck(model)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember that the initial weights have been replaced."""
        self._checkpoint_loaded = True

    def before_train(self, runner: Runner) -> None:
        """Check the weights."""
        model = get_ori_model(runner.model)
        backbone: Any = getattr(model, 'backbone', None)
        cfg = pretrained_cfg(backbone)
        if cfg is None or (is_resuming(runner) and self._checkpoint_loaded):
            return
        path = start_file(runner)
        prefix = 'backbone.' if path else cfg.get('prefix')
        path = path or cfg['checkpoint']
        if not is_known(backbone):
            runner.logger.info(
                f'{type(self).__name__} does not know '
                f'{type(backbone).__name__}: its weights were not compared '
                f'with {path}.')
            return
        check_weights(backbone, path, prefix)
        runner.logger.info(f'All {len(backbone.state_dict())} tensors of the '
                           f'backbone are those of {path}.')
