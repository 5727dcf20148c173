# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""One detector that runs, and is trained, at many widths."""
from functools import lru_cache
from typing import Dict, List, Sequence, Union

from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from us3l_mm.models.layers import (Subnet, SubnetLike, check_subnets, set_sync,
                                   slimmable_layers, subnet_list)
from us3l_mm.models.selfsup import Batch, MultiPassModel, Pass, Plan
from us3l_mm.models.selfsup.checkpointing import use_plain_checkpoints
from us3l_mm.registry import MODELS
from .neck_inputs import measure_norms, slice_inputs


class AllWidths(MultiPassModel):
    """Mix-in for a detector of MMDetection over a backbone of any width.

    :func:`all_widths_detector` puts it before the class of the detector,
    whose modules, keys and arguments stay. Neck and heads have the full width
    and are shared by all sub-networks; at a narrow width, the backbone
    returns maps of fewer channels and the neck reads these.

    A training step runs the sub-networks of the plan one after the other,
    forward and backward, and makes one optimizer step with the sum of their
    gradients. Source: the COCO protocol of SlimCLR, arXiv 2209.15525.

    Batch norms, also those of neck and heads, use the statistics of the batch
    in training, and in tests those that were measured for the sub-network;
    see :class:`~us3l_mm.engine.CalibrationHook`.
    """

    stock: type  # the class of the detector in MMDetection
    update_mode = 'accumulate'

    def __init__(self, subnets: List[Subnet], sync_norms: bool, **kwargs):
        super().__init__(**kwargs)
        use_plain_checkpoints(self.backbone)
        slice_inputs(self.neck, self.backbone)
        for part in self.children():
            if part is not self.backbone:
                measure_norms(part)
        set_sync(self, sync_norms)
        self.subnets, self.default_plan = subnets, Plan.fixed(subnets)

    def pass_loss(self, batch: Batch, pass_: Pass) -> Dict[str, dict]:
        """The losses of one pass, at the width that the layers are set to.

        Returns:
            dict: ``losses`` with their sum, named like ``loss_w0.50``, and
            ``log`` with the parts of the loss of the widest sub-network,
            under MMDetection's names.
        """
        samples = [_copy(sample) for sample in batch.views['data_samples']]
        total, parts = self.parse_losses(
            self.loss(batch.views['inputs'], samples))
        del parts['loss']
        return dict(
            losses={f'loss_{pass_.name}': total}, log={
                name: value.detach() for name, value in parts.items()}
            if pass_.role == 'base' else {})

    def run_norms(self, inputs: Tensor, data_samples: list) -> None:
        """Pass images through all batch norms that are measured.

        Args:
            inputs (Tensor): Preprocessed images (N, 3, H, W).
            data_samples (list): Samples with annotations, which the regions
                for the heads are sampled by; used only if heads have norms.
        """
        within = {
            'backbone' if part is self.backbone else
            'neck' if part is self.neck else 'heads'
            for part in self.children() for layer in slimmable_layers(part)
            if layer.measured_subnets() is not None}
        if 'heads' in within:
            self.loss(inputs, [_copy(sample) for sample in data_samples])
        elif 'neck' in within:
            self.extract_feat(inputs)
        else:
            self.backbone(inputs)

    def on_slice(self, subnet: Subnet) -> None:
        """Become a stock detector, since all layers are plain now."""
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
        detector (str): A type of MMDetection such as 'MaskRCNN', 'FasterRCNN'
            or 'RetinaNet'.
        backbone (dict): A slimmable backbone without a width, such as
            ``SlimmableResNet(norm_eval=False)``.
        neck (dict or list[dict]): A neck with convolutions that take the maps
            of the backbone, such as FPN; ``in_channels`` follow the backbone.
        widths (sequence): The widths, or other sub-networks, to train and to
            evaluate. :class:`~us3l_mm.engine.DynamicSamplerHook` can train
            others, and all in the range of the backbone can be run. Defaults
            to SlimCLR's (1.0, 0.75, 0.5, 0.25).
        sync_norms (bool): Whether batch norms use the statistics of all
            processes together. Defaults to False.
        **kwargs: The other arguments of the detector.

    Raises:
        ValueError: If the backbone has one width, the neck cannot take
            narrower maps, or the backbone does not have one of ``widths``.
    """
    with MODELS.switch_scope_and_registry(None) as registry:
        stock = registry.get(detector)
    if stock is None:
        raise ValueError(f'There is no detector {detector!r}; it is a type of '
                         "MMDetection's, such as 'MaskRCNN' (default_scope="
                         "'mmdet').")
    outline = MODELS.build(backbone)  # for its channels, as in SubnetDetector
    check_backbone(outline)
    subnets = subnet_list(widths)
    check_subnets(outline, subnets)
    if not neck:
        raise ValueError('An AllWidthsDetector needs a neck, as FPN, that '
                         'brings the maps of all widths to the same channels.')
    first, *rest = neck if isinstance(neck, (list, tuple)) else [neck]
    first = dict(first, in_channels=list(outline.out_channels))
    return _over(stock)(subnets=subnets, sync_norms=sync_norms,
                        backbone=backbone,
                        neck=[first, *rest] if rest else first, **kwargs)


def check_backbone(backbone: nn.Module) -> None:
    """Raise ValueError if ``backbone`` has one width only."""
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
    """The class ``stock`` with the mix-in, created once."""
    return type(
        f'AllWidths{stock.__name__}', (AllWidths, stock),
        dict(stock=stock, __module__=__name__, __doc__=AllWidths.__doc__))


def _copy(sample: BaseDataElement) -> BaseDataElement:
    """A copy of the containers, not of the tensors.

    A loss may take parts out of its samples.
    """
    copy = sample.clone()
    for name, value in list(copy.items()):
        if isinstance(value, BaseDataElement):
            copy.set_data({name: _copy(value)})
    return copy
