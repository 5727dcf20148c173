# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from us3l_mm.datasets.coco_checks import check_detection_data
from us3l_mm.engine.mmengine_internals import built_loop
from us3l_mm.registry import HOOKS


@HOOKS.register_module()
class CheckAnnotationsHook(Hook):
    """Refuse a detection data set that would teach or test something else.

    Classes that differ from those of the annotation file or of the heads,
    image files that are missing or empty, and a training set without
    instances or masks raise ValueError before the first iteration, with the
    options to set. Data sets that are not in COCO format are not checked.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Check every data set of this run."""
        for stage in ('train', 'val', 'test'):
            loop = built_loop(runner, stage)
            if loop is not None:
                check_detection_data(loop.dataloader.dataset,
                                     get_ori_model(runner.model),
                                     f'{stage}_dataloader.dataset')
