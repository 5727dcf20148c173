# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmpretrain.models.heads import ClsHead, LinearClsHead
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from us3l_mm.models.layers import (SlimmableLayer, Subnet, SubnetLike,
                                   subnet_list)
from us3l_mm.registry import MODELS


@MODELS.register_module()
class SwitchableLinearHead(SlimmableLayer, ClsHead):
    """An independent linear classifier for each of a list of sub-networks.

    It computes what the :class:`~mmpretrain.models.LinearClsHead` of the
    current sub-network does. Weights are not shared, since the best classifier
    of the leading features is not a part of the best one of all features.
    Source: SlimCLR, arXiv 2209.15525 (switchable linear probe).

    Args:
        num_classes (int): Number of classes.
        widths (sequence): The widths, or other sub-networks, that have a
            classifier.
        in_channels (sequence[int]): Channels of the features at each of them;
            :class:`~us3l_mm.models.classifiers.AllWidthsClassifier` fills
            them in.
        distill_weight (float): The share of the cross entropy to the
            prediction of the widest sub-network, which gets no gradient from
            it, in the loss of the others; the labels have the remaining
            share. SlimCLR has 0.5. Defaults to 0.0, as in US3L.
        init_cfg (dict, optional): Defaults to weights from N(0, 0.01) and
            biases of 0.
        **kwargs: The other arguments of MMPretrain's ``ClsHead`` (``loss``,
            ``topk``, ``cal_acc``).
    """

    def __init__(self, num_classes: int, widths: Sequence[SubnetLike],
                 in_channels: Sequence[int], distill_weight: float = 0.0,
                 init_cfg: Optional[dict] = None, **kwargs):
        super().__init__(
            init_cfg=init_cfg or dict(type='Normal', layer='Linear', std=0.01),
            **kwargs)
        if num_classes < 1:
            raise ValueError(f'num_classes is at least 1, got {num_classes}.')
        if len(in_channels) != len(widths):
            raise ValueError(
                f'in_channels has a number for each of the {len(widths)} '
                f'widths, got {list(in_channels)}.')
        if not 0.0 <= distill_weight <= 1.0:
            raise ValueError(
                f'distill_weight is in [0, 1], got {distill_weight}.')
        self.subnets = subnet_list(widths)
        channels = dict(zip(map(Subnet.of, widths), in_channels))
        self.num_classes, self.distill_weight = num_classes, distill_weight
        self.linears = nn.ModuleDict({
            _key(subnet):
            nn.Linear(channels[subnet], num_classes)
            for subnet in self.subnets})

    def linear(self, subnet: SubnetLike) -> nn.Linear:
        """The classifier of ``subnet``."""
        subnet = Subnet.of(subnet)
        if subnet not in self.subnets:
            raise ValueError(
                f'There is no linear layer for {subnet}: this head was built '
                f'for {[str(s) for s in self.subnets]}. Use one of these, or '
                'train a head that has it (model.head.widths).')
        return self.linears[_key(subnet)]

    def on_subnet(self) -> None:
        if not self.subnet.is_full:  # every layer starts there
            self.linear(self.subnet)

    def forward(self, feats: Tuple[Tensor, ...]) -> Tensor:
        """Scores (N, classes) of features (N, c) of this sub-network."""
        return self.linear(self.subnet)(self.pre_logits(feats))

    def loss_of_subnets(self, feats: Dict[Subnet, Tuple[Tensor, ...]],
                        data_samples: List[DataSample]) -> Dict[str, Tensor]:
        """The losses of all sub-networks, named like ``loss_w0.50``.

        Args:
            feats (dict): Features of each sub-network as for :meth:`forward`.
            data_samples (list[DataSample]): The labels.
        """
        losses, target = {}, None
        for subnet in self.subnets:
            scores = self.linear(subnet)(self.pre_logits(feats[subnet]))
            terms = self._get_loss(scores, data_samples)
            if target is not None:
                terms['loss'] = torch.lerp(terms['loss'],
                                           F.cross_entropy(scores, target),
                                           self.distill_weight)
            elif self.distill_weight:
                target = scores.detach().softmax(dim=1)
            losses.update({
                f'{name}_{subnet}': value for name, value in terms.items()})
        return losses

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Load; MMEngine would only log that a classifier is missing."""
        missing = [
            str(subnet) for subnet in self.subnets
            if f'{prefix}linears.{_key(subnet)}.weight' not in state_dict]
        if missing:
            raise ValueError(
                f'The file has no linear layers for {missing}. Use a '
                'checkpoint that was trained with them, or name its widths '
                '(model.head.widths). Weights of a pre-training go to '
                'model.backbone.init_cfg.checkpoint.')
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @torch.no_grad()
    def plain(self, subnet: SubnetLike) -> LinearClsHead:
        """A plain head with a copy of the weights of ``subnet``."""
        linear = self.linear(subnet)
        head = LinearClsHead(self.num_classes, linear.in_features,
                             loss=self.loss_module, topk=self.topk,
                             cal_acc=self.cal_acc).to(linear.weight)
        head.fc.load_state_dict(linear.state_dict())
        return head.train(self.training)


def _key(subnet: Subnet) -> str:
    """The name of its layer; :class:`torch.nn.ModuleDict` allows no ''."""
    return subnet.key or 'w1000000'
