# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""One detector that runs, and is trained, at many widths."""
from functools import lru_cache
from typing import Dict, List, Optional, Sequence, Union

from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from us3l_mm.models.layers import (SlimmableBatchNorm, Subnet, SubnetLike,
                                   set_sync, slimmable_layers, subnet_list)
from us3l_mm.models.selfsup import Batch, Pass, Plan, check_pass, run_passes
from us3l_mm.models.selfsup.checkpointing import use_plain_checkpoints
from us3l_mm.registry import MODELS
from .neck_inputs import measure_norms, slice_inputs


class AllWidths:
    """Mix-in of a detector of MMDetection over a backbone of any width.

    What :func:`all_widths_detector` builds is such a detector with this mix-in
    before it: its modules, its keys, its arguments. Neck and heads are those
    of the full width and shared; at a width, the backbone gives narrower maps
    and the neck reads these.

    A training step runs the sub-networks of ``plan`` one after the other,
    forward and backward, and makes one optimizer step with the sum of their
    gradients. Source: the COCO protocol of SlimCLR, arXiv 2209.15525.

    Batch norms, also those of neck and heads, use the statistics of the batch
    in training and measured ones, per width, in tests; see
    :class:`~us3l_mm.engine.CalibrationHook`.
    """

    stock: type  # the class of MMDetection
    update_mode = 'accumulate'

    def __init__(self, widths: List[Subnet], sync_norms: bool, **kwargs):
        super().__init__(**kwargs)
        use_plain_checkpoints(self.backbone)
        slice_inputs(self.neck, self.backbone)
        for part in self.children():
            if part is not self.backbone:
                measure_norms(part)
        set_sync(self, sync_norms)
        self.subnets = widths
        self.default_plan = Plan.fixed(widths)

    def train_step(self, data: dict, optim_wrapper) -> Dict[str, Tensor]:
        """Train on one batch; see :func:`~us3l_mm.models.run_passes`."""
        return run_passes(self, self, data, optim_wrapper)

    def views(self, data: dict) -> dict:
        """The preprocessed batch: ``inputs`` (N, 3, H, W), ``data_samples``.
        """
        return self.data_preprocessor(data, training=True)

    def begin(self, batch: Batch) -> None:
        """Nothing: all widths learn from the annotations alone."""

    def end(self, batch: Batch) -> None:
        """Nothing."""

    def forward(self, inputs: Union[Tensor, Batch], data_samples=None,
                mode: str = 'tensor', pass_: Optional[Pass] = None):
        """MMDetection's three modes, where ``loss`` is one pass over a batch.

        Args:
            inputs (Tensor or Batch): Images; in mode 'loss' the batch.
        """
        if mode != 'loss':
            return super().forward(inputs, data_samples, mode)
        return self.pass_loss(inputs, check_pass(self, pass_))

    def pass_loss(self, batch: Batch, pass_: Pass) -> Dict[str, dict]:
        """The losses of one pass, at the width that the layers are set to.

        Returns:
            dict: In ``losses`` their sum, such as ``loss_w0.50``; in ``log``
            the parts of the widest network, under MMDetection's names.
        """
        samples = [_copy(sample) for sample in batch.views['data_samples']]
        total, parts = self.parse_losses(
            self.loss(batch.views['inputs'], samples))
        del parts['loss']
        return dict(
            losses={f'loss_{pass_.name}': total},
            log={name: value.detach()
                 for name, value in parts.items()}
            if pass_.role == 'base' else {})

    def run_norms(self, inputs: Tensor, data_samples: list) -> None:
        """Let images pass all batch norms, as in training.

        Args:
            inputs (Tensor): Preprocessed images (N, 3, H, W).
            data_samples (list): With annotations, by which regions for the
                heads are sampled; read only if heads have norms.
        """
        within = {
            'backbone' if part is self.backbone else
            'neck' if part is self.neck else 'heads'
            for part in self.children()
            for layer in slimmable_layers(part)
            if isinstance(layer, SlimmableBatchNorm)
        }
        if 'heads' in within:
            self.loss(inputs, [_copy(sample) for sample in data_samples])
        elif 'neck' in within:
            self.extract_feat(inputs)
        else:
            self.backbone(inputs)

    def on_slice(self, width: float) -> None:
        """Become MMDetection's own detector, now that all layers are plain."""
        first = self.neck[0] if isinstance(self.neck,
                                           nn.Sequential) else self.neck
        if hasattr(first, 'in_channels'):
            first.in_channels = list(self.backbone.out_channels)
        del self.subnets, self.default_plan
        self.__class__ = self.stock


@MODELS.register_module(name='AllWidthsDetector')
def all_widths_detector(detector: str, backbone: dict, neck: Union[dict,
                                                                   List[dict]],
                        widths: Sequence[SubnetLike] = (1.0, 0.75, 0.5, 0.25),
                        sync_norms: bool = False, **kwargs) -> nn.Module:
    """A detector of MMDetection that runs at any width: :class:`AllWidths`.

    Args:
        detector (str): A type such as 'MaskRCNN', 'FasterRCNN', 'RetinaNet'.
        backbone (dict): A slimmable one, such as
            ``SlimmableResNet(norm_eval=False)``, without a width.
        neck (dict or list[dict]): With convolutions that take the maps of the
            backbone, such as FPN; ``in_channels`` follow the backbone.
        widths (sequence[float]): What to train and to evaluate. Others can be
            trained by :class:`~us3l_mm.engine.DynamicSamplerHook`, and every
            one in the range of the backbone can be run. Defaults to SlimCLR's
            (1.0, 0.75, 0.5, 0.25).
        sync_norms (bool): Whether batch norms use the statistics of all
            processes together. Defaults to False.
        **kwargs: The other arguments of the detector.

    Raises:
        ValueError: for a backbone of one width, a neck that cannot take
            narrower maps, widths that the backbone does not have.
    """
    with MODELS.switch_scope_and_registry(None) as registry:
        stock = registry.get(detector)
    if stock is None:
        raise ValueError(f'There is no detector {detector!r}; it is a type of '
                         "MMDetection's, such as 'MaskRCNN' (default_scope="
                         "'mmdet').")
    outline = MODELS.build(backbone)  # for its channels, as in SubnetDetector
    check_backbone(outline)
    subnets = [s.check(outline.width_range) for s in subnet_list(widths)]
    if not neck:
        raise ValueError('An AllWidthsDetector needs a neck, as FPN, that '
                         'brings the maps of all widths to the same channels.')
    first, *rest = neck if isinstance(neck, (list, tuple)) else [neck]
    first = dict(first, in_channels=list(outline.out_channels))
    return _over(stock)(widths=subnets, sync_norms=sync_norms,
                        backbone=backbone,
                        neck=[first, *rest] if rest else first, **kwargs)


def check_backbone(backbone: nn.Module) -> None:
    """Refuse a backbone that has one width only."""
    if any(slimmable_layers(backbone)):
        return
    width = getattr(backbone, 'width', None)
    raise ValueError(
        'An AllWidthsDetector has a backbone that runs at any width; this '
        f'{type(backbone).__name__} has ' +
        ('one.' if width is None else f'the width {width:g}.') +
        ' Use us3l_mm.SlimmableResNet without width, or '
        'us3l_mm.SubnetDetector for a detector of one width.')


@lru_cache(maxsize=None)
def _over(stock: type) -> type:
    """``stock`` that runs at any width; the same class each time."""
    return type(
        f'AllWidths{stock.__name__}', (AllWidths, stock),
        dict(stock=stock, __module__=__name__, __doc__=AllWidths.__doc__))


def _copy(sample: BaseDataElement) -> BaseDataElement:
    """Of the containers, not of the tensors: a pass may take out its parts."""
    copy = sample.clone()
    for name, value in list(copy.items()):
        if isinstance(value, BaseDataElement):
            copy.set_data({name: _copy(value)})
    return copy
