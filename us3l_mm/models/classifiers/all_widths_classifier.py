# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Union

import torch
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from us3l_mm.models.layers import at, check_statistics
from us3l_mm.registry import MODELS
from .subnet_classifier import check_checkpoint


@MODELS.register_module()
class AllWidthsClassifier(ImageClassifier):
    """Linear classifiers of several widths of one frozen network, at once.

    The backbone is frozen and always in evaluation mode, each width
    normalises by its measured statistics, and only the head learns: the loss
    is the sum over widths. Prediction is at the width that is set
    (:func:`~us3l_mm.models.layers.at_width`), which
    :class:`~us3l_mm.engine.WidthValLoop` does for all of them.

    Args:
        backbone (dict or nn.Module): A slimmable one, such as
            ``SlimmableResNet(init_cfg=dict(type='Pretrained', ...))``.
        neck (dict or nn.Module): Pools; it keeps the channels.
        head (dict): Of a
            :class:`~us3l_mm.models.heads.SwitchableLinearHead`, without
            ``in_channels``, which follow the widths.
        **kwargs: Those of MMPretrain's ``ImageClassifier``.
    """

    def __init__(self, backbone: Union[dict, nn.Module],
                 neck: Union[dict, nn.Module], head: dict, **kwargs):
        if not isinstance(backbone, nn.Module):
            backbone = MODELS.build(backbone)
        head = dict(
            head, in_channels=[
                backbone.feature_channels(width)[-1]
                for width in head.get('widths', ())
            ])
        super().__init__(backbone, neck, head, **kwargs)
        self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.backbone.eval()
        return self

    def init_weights(self) -> None:
        """Load the backbone's checkpoint; refuse one without statistics."""
        check_checkpoint(self.backbone)
        super().init_weights()
        for subnet in self.head.subnets:
            check_statistics(self.backbone, subnet)

    def loss(self, inputs: Tensor,
             data_samples: List[DataSample]) -> Dict[str, Tensor]:
        """The loss of every width, see ``SwitchableLinearHead``."""
        feats = {}
        with torch.no_grad():
            for subnet in self.head.subnets:
                with at(self, subnet):
                    feats[subnet] = self.extract_feat(inputs)
        return self.head.loss_of_subnets(feats, data_samples)
