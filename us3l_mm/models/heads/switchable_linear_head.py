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
    Source: SlimCLR, arXiv 2209.15525 (switchable linear probe, and the
    slimmable one that it is compared with).

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
        shared (bool): Whether there is a single classifier, of the features
            of the widest sub-network, and the others use the columns of their
            leading features (the slimmable probe). Defaults to False.
        init_cfg (dict, optional): Defaults to weights from N(0, 0.01) and
            biases of 0.
        **kwargs: The other arguments of MMPretrain's ``ClsHead`` (``loss``,
            ``topk``, ``cal_acc``).
    """

    def __init__(self, num_classes: int, widths: Sequence[SubnetLike],
                 in_channels: Sequence[int], distill_weight: float = 0.0,
                 shared: bool = False, init_cfg: Optional[dict] = None,
                 **kwargs):
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
        self.channels = dict(zip(map(Subnet.of, widths), in_channels))
        self.num_classes, self.distill_weight = num_classes, distill_weight
        # Those that have a linear layer.
        self.owners = self.subnets[:1] if shared else self.subnets
        self.linears = nn.ModuleDict({
            _key(subnet):
            nn.Linear(self.channels[subnet], num_classes)
            for subnet in self.owners})

    def linear(self, subnet: SubnetLike) -> nn.Linear:
        """The linear layer of ``subnet``, which may be shared."""
        subnet = Subnet.of(subnet)
        if subnet not in self.subnets:
            raise ValueError(
                f'There is no linear layer for {subnet}: this head was built '
                f'for {[str(s) for s in self.subnets]}. Use one of these, or '
                'train a head that has it (model.head.widths).')
        return self.linears[_key(subnet if subnet in
                                 self.owners else self.owners[0])]

    def weights(self, subnet: SubnetLike) -> Tuple[Tensor, Tensor]:
        """Weight (classes, c) and bias (classes, ) of ``subnet``."""
        linear = self.linear(subnet)
        return linear.weight[:, :self.channels[Subnet.of(subnet)]], linear.bias

    def scores(self, feats: Tuple[Tensor, ...], subnet: SubnetLike) -> Tensor:
        """Scores (N, classes) of features (N, c) of ``subnet``."""
        return F.linear(self.pre_logits(feats), *self.weights(subnet))

    def on_subnet(self) -> None:
        if not self.subnet.is_full:  # every layer starts there
            self.linear(self.subnet)

    def forward(self, feats: Tuple[Tensor, ...]) -> Tensor:
        """:meth:`scores` of the current sub-network."""
        return self.scores(feats, self.subnet)

    def loss_of_subnets(self, feats: Dict[Subnet, Tuple[Tensor, ...]],
                        data_samples: List[DataSample]) -> Dict[str, Tensor]:
        """The losses of all sub-networks, named like ``loss_w0.50``.

        Args:
            feats (dict): Features of each sub-network as for :meth:`forward`.
            data_samples (list[DataSample]): The labels.
        """
        losses, target = {}, None
        for subnet in self.subnets:
            scores = self.scores(feats[subnet], subnet)
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
            str(subnet) for subnet in self.owners
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
        weight, bias = self.weights(subnet)
        head = LinearClsHead(self.num_classes, weight.shape[1],
                             loss=self.loss_module, topk=self.topk,
                             cal_acc=self.cal_acc).to(weight)
        head.fc.weight.copy_(weight)
        head.fc.bias.copy_(bias)
        return head.train(self.training)


def _key(subnet: Subnet) -> str:
    """The name of its layer; :class:`torch.nn.ModuleDict` allows no ''."""
    return subnet.key or 'w1000000'
