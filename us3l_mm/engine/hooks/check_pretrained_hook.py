# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from us3l_mm.engine.checks.pretrained import (KNOWN, check_neck, check_weights,
                                              pretrained_cfg, read_file)
from us3l_mm.engine.mmengine_internals import (built_loop, is_resuming,
                                               start_file)
from us3l_mm.registry import HOOKS

PREFIX = 'backbone.'


@HOOKS.register_module()
class CheckPretrainedHook(Hook):
    """Refuse to train if a backbone does not hold its pre-trained weights.

    Before the first iteration every tensor of the backbone is compared with
    the file of ``init_cfg=dict(type='Pretrained', ...)``, or with that of
    ``load_from`` where there is one: a file of another width or depth, a full
    file in a narrow network, missing keys, a wrong prefix and weights that
    were overwritten raise ValueError. A resumed run is left alone. It knows
    ResNets, MMPretrain's, MMDetection's and ours; the weights of other
    backbones are not compared, and the log says so.

    The ``in_channels`` of the neck are compared with the backbone too, also
    before a test.
    """

    # Before hooks that change weights, such as EMAHook
    priority = 'VERY_HIGH'

    def __init__(self):
        self._checkpoint_loaded = False

    def before_run(self, runner: Runner) -> None:
        """Compare names and shapes, while nothing has been loaded."""
        model = _unwrapped(runner)
        if not hasattr(model, 'backbone'):
            return
        check_neck(model)
        if built_loop(
                runner,
                'train') and not (is_resuming(runner) or start_file(runner)):
            self._check(runner, values=False)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember that the initial weights have been replaced."""
        self._checkpoint_loaded = True

    def before_train(self, runner: Runner) -> None:
        """Compare all numbers."""
        if not (is_resuming(runner) and self._checkpoint_loaded):
            self._check(runner, values=True)

    def _check(self, runner: Runner, values: bool) -> None:
        backbone = getattr(_unwrapped(runner), 'backbone', None)
        cfg = pretrained_cfg(backbone)
        path, prefix = (start_file(runner),
                        PREFIX) if start_file(runner) else (
                            cfg and cfg['checkpoint'],
                            cfg and cfg.get('prefix'))
        if cfg is None or not path:
            return
        if type(backbone).__name__ not in KNOWN:
            if values:
                runner.logger.info(
                    f'{type(self).__name__} does not know '
                    f'{type(backbone).__name__}: its weights were not '
                    f'compared with {path}.')
            return
        file = read_file(path, prefix)
        check_weights(backbone, file, values)
        if values:
            runner.logger.info(f'All {len(backbone.state_dict())} tensors of '
                               f'the backbone are those of {path}.')


def _unwrapped(runner: Runner) -> nn.Module:
    model = runner.model
    return model.module if is_model_wrapper(model) else model
