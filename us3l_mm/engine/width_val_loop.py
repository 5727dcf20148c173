# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from copy import deepcopy
from typing import Any, List, Optional, Sequence, Union

import torch
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner, ValLoop
from mmengine.runner.amp import autocast
from mmpretrain.utils import get_ori_model
from torch.utils.data import DataLoader

from us3l_mm.engine.hooks import CalibrationHook
from us3l_mm.engine.hooks.compile_hook import uncompiled
from us3l_mm.engine.mmengine_internals import built_loop
from us3l_mm.models.layers import (Subnet, SubnetLike, at, check_subnets,
                                   slimmable_layers)
from us3l_mm.registry import LOOPS


@LOOPS.register_module()
class WidthValLoop(ValLoop):
    """Validate several sub-networks in one pass over the data.

    Each batch is loaded once and predicted by every sub-network. Each has its
    own metrics, named after it, such as ``accuracy/top1_w0.50``, in the log,
    the visualizer and ``CheckpointHook(save_best='accuracy/top1_w0.50')``.
    Hooks are called once for each batch, with the predictions of the first
    sub-network.

    Args:
        runner (Runner): The runner.
        dataloader (DataLoader or dict): The loader of the images.
        evaluator (Evaluator, dict or list): The evaluator, which is copied
            for each sub-network.
        widths (sequence, optional): The widths, or other sub-networks.
            Defaults to those of the detector or of the classifier's head, or
            to the width of a backbone that has only one.
        fp16 (bool): Whether to predict in mixed precision. Defaults to False.
    """

    stage = 'val'

    def __init__(self, runner: Runner, dataloader: Union[DataLoader, dict],
                 evaluator: Union[Evaluator, dict, List],
                 widths: Optional[Sequence[SubnetLike]] = None,
                 fp16: bool = False):
        super().__init__(runner, dataloader, evaluator, fp16)
        subnets = self._default_subnets() if widths is None else [
            Subnet.of(width) for width in widths]
        if not subnets:
            raise ValueError('widths is a list of at least one width.')
        check_subnets(runner.model, subnets)
        self.evaluators = {s: self._evaluator_of(s) for s in subnets}
        self._check_hooks()

    def _default_subnets(self) -> List[Subnet]:
        model: Any = get_ori_model(self.runner.model)
        for owner in (model, getattr(model, 'head', None)):
            if subnets := getattr(owner, 'subnets', None):
                return subnets
        if getattr(model.backbone, 'width', None) is None:
            raise ValueError(
                f'{type(self).__name__} needs to know the widths: the model '
                f'has no list of them. Set {self.stage}_cfg.widths=[...].')
        return [Subnet.of(model.backbone.width)]

    def _evaluator_of(self, subnet: Subnet) -> Evaluator:
        """A copy of the evaluator for one sub-network."""
        # Annotations in COCO format are large, and are only read.
        truths = [
            getattr(metric, '_coco_api', None)
            for metric in self.evaluator.metrics]
        evaluator = deepcopy(self.evaluator, {id(t): t for t in truths if t})
        for metric in evaluator.metrics:
            if getattr(metric, 'outfile_prefix', None):
                metric.outfile_prefix = f'{metric.outfile_prefix}_{subnet}'
        return evaluator

    def _check_hooks(self) -> None:
        """Raise if hooks lack a metric, or the loop lacks a hook."""
        endings = tuple(f'_{subnet}' for subnet in self.evaluators)
        hooks = self.runner.hooks
        for hook in hooks:
            for name in getattr(hook, 'save_best', None) or ():
                if name != 'auto' and not name.endswith(endings):
                    raise ValueError(
                        'The metrics of this validation have names that end '
                        f'in one of {list(endings)}, such as '
                        f'accuracy/top1{endings[0]}; got '
                        f'save_best={name!r}.')
        model = get_ori_model(self.runner.model)
        measures = hasattr(model, 'run_norms') and any(
            layer.measured_subnets() is not None
            for layer in slimmable_layers(model))
        if (measures and built_loop(self.runner, 'train')
                and not any(isinstance(h, CalibrationHook) for h in hooks)):
            raise ValueError(
                'Training tracks no batch-norm statistics, so there would be '
                'none to validate with. Add default_hooks.calibration='
                "dict(type='us3l_mm.CalibrationHook').")

    def run(self) -> dict:
        """Predict all images, and return the metrics of all sub-networks."""
        call = self.runner.call_hook
        call(f'before_{self.stage}')
        call(f'before_{self.stage}_epoch')
        self.runner.model.eval()
        with uncompiled(self.runner):
            for index, data_batch in enumerate(self.dataloader):
                self.run_iter(index, data_batch)
        size = len(self.dataloader.dataset)
        metrics = {
            f'{name}_{subnet}': value
            for subnet, evaluator in self.evaluators.items()
            for name, value in evaluator.evaluate(size).items()}
        call(f'after_{self.stage}_epoch', metrics=metrics)
        call(f'after_{self.stage}')
        return metrics

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Predict one batch with every sub-network."""
        batch = dict(batch_idx=idx, data_batch=data_batch)
        self.runner.call_hook(f'before_{self.stage}_iter', **batch)
        first = None
        for subnet, evaluator in self.evaluators.items():
            with at(self.runner.model, subnet), autocast(enabled=self.fp16):
                outputs = getattr(self.runner.model,
                                  f'{self.stage}_step')(data_batch)
            # A copy, as the next sub-network overwrites the predictions.
            first = [sample.clone()
                     for sample in outputs] if first is None else first
            evaluator.process(data_samples=outputs, data_batch=data_batch)
        self.runner.call_hook(f'after_{self.stage}_iter', **batch,
                              outputs=first)


@LOOPS.register_module()
class WidthTestLoop(WidthValLoop):
    """:class:`WidthValLoop` for testing, which calls the hooks of a test."""

    stage = 'test'
