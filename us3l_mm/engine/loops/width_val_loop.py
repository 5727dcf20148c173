# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from copy import deepcopy
from typing import Dict, List, Optional, Sequence, Union

import torch
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner, ValLoop
from mmengine.runner.amp import autocast
from mmpretrain.utils import get_ori_model
from torch.utils.data import DataLoader

from us3l_mm.engine.hooks import CalibrationHook
from us3l_mm.engine.mmengine_internals import built_loop
from us3l_mm.models.layers import Subnet
from us3l_mm.models.layers import at_width
from us3l_mm.registry import LOOPS


@LOOPS.register_module()
class WidthValLoop(ValLoop):
    """Validate several widths in one pass over the data.

    Each batch is loaded once and predicted at every width, and each width has
    metrics of its own, named after it: ``accuracy/top1_w0.50``. Those names
    are in the log and the visualizer, and
    ``CheckpointHook(save_best='accuracy/top1_w0.50')`` knows them. Hooks are
    called once a batch, with the predictions of the first width.

    Args:
        runner (Runner): The runner.
        dataloader (DataLoader or dict): Of the images.
        evaluator (Evaluator, dict or list): Copied for each width.
        widths (sequence[float], optional): Defaults to the widths of the
            detector or of the classifier's head, else to the one width of
            its backbone.
        fp16 (bool): Whether to predict in mixed precision. Defaults to False.
    """

    stage = 'val'

    def __init__(self, runner: Runner, dataloader: Union[DataLoader, dict],
                 evaluator: Union[Evaluator, dict, List],
                 widths: Optional[Sequence[float]] = None, fp16: bool = False):
        super().__init__(runner, dataloader, evaluator, fp16)
        widths = self._default_widths() if widths is None else widths
        if not widths:
            raise ValueError('widths is a list of at least one width.')
        for width in widths:  # refuse now what cannot run later
            with at_width(runner.model, width):
                pass
        self.evaluators: Dict[float, Evaluator] = {
            width: self._evaluator_at(width)
            for width in widths
        }
        self._check_save_best()
        self._check_calibration()

    def _default_widths(self) -> List[float]:
        model = get_ori_model(self.runner.model)
        # Those of a detector, or of a classifier's head
        widths = getattr(model, 'widths', None) or getattr(
            getattr(model, 'head', None), 'widths', None)
        if widths is None and model.backbone.width is not None:
            widths = [model.backbone.width]
        if widths is None:
            raise ValueError(
                f'{type(self).__name__} needs to know the widths: the model '
                f'has no list of them. Set {self.stage}_cfg.widths=[...].')
        return widths

    def _evaluator_at(self, width: float) -> Evaluator:
        """A copy of the evaluator for one width."""
        # The truth in COCO format is read only, and large.
        shared = {
            id(truth): truth
            for truth in (getattr(metric, '_coco_api', None)
                          for metric in self.evaluator.metrics)
            if truth is not None
        }
        evaluator = deepcopy(self.evaluator, shared)
        for metric in evaluator.metrics:
            if getattr(metric, 'outfile_prefix', None):
                metric.outfile_prefix = f'{metric.outfile_prefix}_{Subnet.of(width)}'
        return evaluator

    def _check_save_best(self) -> None:
        """Refuse a metric that would be looked for after the first epochs."""
        endings = tuple(f'_{Subnet.of(width)}' for width in self.evaluators)
        for hook in self.runner.hooks:
            for name in getattr(hook, 'save_best', None) or ():
                if name != 'auto' and not name.endswith(endings):
                    raise ValueError(
                        f'save_best={name!r} names no metric of this '
                        'validation: their names end in one of '
                        f'{list(endings)}, such as '
                        f'accuracy/top1{endings[0]}.')

    def _check_calibration(self) -> None:
        """Refuse a training after which no width could be validated."""
        runner = self.runner
        if (built_loop(runner, 'train')
                and hasattr(get_ori_model(runner.model), 'run_norms')
                and not any(
                    isinstance(hook, CalibrationHook)
                    for hook in runner.hooks)):
            raise ValueError(
                'Training tracks no batch-norm statistics, so there would be '
                'none to validate with. Add custom_hooks: '
                "dict(type='us3l_mm.CalibrationHook').")

    def run(self) -> dict:
        """Predict everything, and return the metrics of all widths."""
        call = self.runner.call_hook
        call(f'before_{self.stage}')
        call(f'before_{self.stage}_epoch')
        self.runner.model.eval()
        for index, data_batch in enumerate(self.dataloader):
            self.run_iter(index, data_batch)
        size = len(self.dataloader.dataset)
        metrics = {
            f'{name}_{Subnet.of(width)}': value
            for width, evaluator in self.evaluators.items()
            for name, value in evaluator.evaluate(size).items()
        }
        call(f'after_{self.stage}_epoch', metrics=metrics)
        call(f'after_{self.stage}')
        return metrics

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Predict one batch at every width."""
        batch = dict(batch_idx=idx, data_batch=data_batch)
        self.runner.call_hook(f'before_{self.stage}_iter', **batch)
        first = None
        for width, evaluator in self.evaluators.items():
            with at_width(self.runner.model,
                          width), autocast(enabled=self.fp16):
                outputs = getattr(self.runner.model,
                                  f'{self.stage}_step')(data_batch)
            # Kept as they are: the next width writes new ones.
            first = [sample.clone()
                     for sample in outputs] if first is None else first
            evaluator.process(data_samples=outputs, data_batch=data_batch)
        self.runner.call_hook(f'after_{self.stage}_iter', **batch,
                              outputs=first)


@LOOPS.register_module()
class WidthTestLoop(WidthValLoop):
    """:class:`WidthValLoop` for testing: calls the hooks of a test."""

    stage = 'test'
