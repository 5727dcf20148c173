# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Tuple, Union

import torch
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from us3l_mm.models.layers import (Subnet, at, check_statistics, check_subnets)
from us3l_mm.registry import MODELS
from .subnet_classifier import check_checkpoint


@MODELS.register_module()
class AllWidthsClassifier(ImageClassifier):
    """Linear classifiers of several sub-networks of one frozen network.

    The backbone is frozen and always in evaluation mode, each sub-network
    uses its measured statistics or its switchable norms, and only the head
    learns, by the sum of the losses of all sub-networks. Predictions are those
    of the sub-network that is set (:func:`~us3l_mm.models.layers.at`);
    :class:`~us3l_mm.engine.WidthValLoop` sets one after the other.

    Args:
        backbone (dict or nn.Module): A slimmable backbone, such as
            ``SlimmableResNet(init_cfg=dict(type='Pretrained', ...))``.
        neck (dict or nn.Module): A neck that pools and keeps the channels.
        head (dict): The arguments of a
            :class:`~us3l_mm.models.heads.SwitchableLinearHead` without
            ``in_channels``, which follow the widths.
        **kwargs: The other arguments of MMPretrain's ``ImageClassifier``.
    """

    def __init__(self, backbone: Union[dict, nn.Module],
                 neck: Union[dict, nn.Module], head: dict, **kwargs):
        backbone, head = backbone_and_head(backbone, head)
        super().__init__(backbone, neck, head, **kwargs)
        check_subnets(self.backbone, self.head.subnets)
        self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.backbone.eval()
        return self

    def init_weights(self) -> None:
        """Load the backbone's checkpoint, which must have the statistics."""
        check_checkpoint(self.backbone)
        super().init_weights()
        for subnet in self.head.subnets:
            check_statistics(self.backbone, subnet)

    def loss(self, inputs: Tensor,
             data_samples: List[DataSample]) -> Dict[str, Tensor]:
        """The losses of all sub-networks, see ``SwitchableLinearHead``."""
        feats = {}
        with torch.no_grad():
            for subnet in self.head.subnets:
                with at(self, subnet):
                    feats[subnet] = self.extract_feat(inputs)
        return self.head.loss_of_subnets(feats, data_samples)


def backbone_and_head(backbone: Union[dict, nn.Module],
                      head: dict) -> Tuple[nn.Module, dict]:
    """The backbone, and the arguments of a head of its sub-networks."""
    if not isinstance(backbone, nn.Module):
        backbone = MODELS.build(backbone)
    return backbone, dict(
        head, in_channels=[
            backbone.feature_channels(subnet.width)[-1]
            for subnet in map(Subnet.of, head.get('widths', ()))])
