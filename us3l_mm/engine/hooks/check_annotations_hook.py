# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from us3l_mm.engine.checks.annotations import check_detection_data
from us3l_mm.engine.mmengine_internals import built_loop
from us3l_mm.registry import HOOKS


@HOOKS.register_module()
class CheckAnnotationsHook(Hook):
    """Refuse a detection data set that would teach or test something else.

    Classes that differ from those of the annotation file or of the heads,
    image files that are missing or empty, a training set without instances or
    masks: ValueError before the first iteration, with the options to set. Data
    sets that are not in COCO format are left alone.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Look at every data set of this run."""
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        for kind in ('train', 'val', 'test'):
            loop = built_loop(runner, kind)
            if loop is not None:
                check_detection_data(loop.dataloader.dataset, model,
                                     f'{kind}_dataloader.dataset')
