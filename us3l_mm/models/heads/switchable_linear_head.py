# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmpretrain.models.heads import ClsHead, LinearClsHead
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from us3l_mm.models.layers import SlimmableLayer, check_width
from us3l_mm.registry import MODELS


def name_at(name: str, width: float) -> str:
    """``name`` at ``width``, such as ``accuracy/top1_w0.50``.

    Two digits, and more only where the width has them.
    """
    digits = f'{width:.2f}'
    return f'{name}_w' + (digits if float(digits) == width else f'{width:.6g}')


@MODELS.register_module()
class SwitchableLinearHead(SlimmableLayer, ClsHead):
    """One independent linear classifier per width of a fixed list.

    At a width it is the :class:`~mmpretrain.models.LinearClsHead` of that
    width. The best classifier of the leading features is no part of the best
    one of all features, hence no shared weights. Source: SlimCLR, arXiv
    2209.15525 (switchable linear probe).

    Args:
        num_classes (int): Number of classes.
        widths (sequence[float]): The widths that have a classifier.
        in_channels (sequence[int]): Channels of the features at each of them;
            :class:`~us3l_mm.models.classifiers.AllWidthsClassifier` fills
            them in.
        distill_weight (float): How much of the loss of the narrower widths is
            the cross entropy to the prediction of the widest, which gets no
            gradient from it; the labels keep the rest. SlimCLR has 0.5.
            Defaults to 0.0, as in US3L.
        init_cfg (dict, optional): Defaults to N(0, 0.01) and biases of 0.
        **kwargs: Those of MMPretrain's ``ClsHead`` (``loss``, ``topk``,
            ``cal_acc``).
    """

    def __init__(self, num_classes: int, widths: Sequence[float],
                 in_channels: Sequence[int], distill_weight: float = 0.0,
                 init_cfg: Optional[dict] = None, **kwargs):
        super().__init__(
            init_cfg=init_cfg or dict(type='Normal', layer='Linear', std=0.01),
            **kwargs)
        if num_classes < 1:
            raise ValueError(f'num_classes is at least 1, got {num_classes}.')
        if not widths or len(set(widths)) != len(widths):
            raise ValueError('widths is a list of at least one width, each '
                             f'named once, got {list(widths)}.')
        if len(in_channels) != len(widths):
            raise ValueError(
                f'in_channels has a number for each of the {len(widths)} '
                f'widths, got {list(in_channels)}.')
        if not 0.0 <= distill_weight <= 1.0:
            raise ValueError(
                f'distill_weight is in [0, 1], got {distill_weight}.')
        channels = {check_width(w): c for w, c in zip(widths, in_channels)}
        self.widths = sorted(channels, reverse=True)
        self.num_classes, self.distill_weight = num_classes, distill_weight
        self.linears = nn.ModuleDict({
            _key(w):
            nn.Linear(channels[w], num_classes)
            for w in self.widths
        })

    def linear(self, width: float) -> nn.Linear:
        """The classifier of ``width``."""
        if _key(width) not in self.linears:
            raise ValueError(
                f'Width {width:g} has no linear layer: this head was built '
                f'for the widths {self.widths}. Use one of them, or train a '
                'head that has it (model.head.widths).')
        return self.linears[_key(width)]

    def on_width(self) -> None:
        if self.width != 1.0:  # every layer starts there; only to run is wrong
            self.linear(self.width)

    def forward(self, feats: Tuple[Tensor, ...]) -> Tensor:
        """Scores (N, classes) of features (N, c) at the width that is set."""
        return self.linear(self.width)(self.pre_logits(feats))

    def loss_of_widths(self, feats: Dict[float, Tuple[Tensor, ...]],
                       data_samples: List[DataSample]) -> Dict[str, Tensor]:
        """``loss_w1.00`` and its like; MMEngine adds them up.

        Args:
            feats (dict): By width, the features as :meth:`forward` takes them.
            data_samples (list[DataSample]): The labels.
        """
        losses, target = {}, None
        for width in self.widths:
            scores = self.linear(width)(self.pre_logits(feats[width]))
            terms = self._get_loss(scores, data_samples)
            if target is not None:
                terms['loss'] = torch.lerp(terms['loss'],
                                           F.cross_entropy(scores, target),
                                           self.distill_weight)
            elif self.distill_weight:
                target = scores.detach().softmax(dim=1)
            losses.update(
                {name_at(name, width): value
                 for name, value in terms.items()})
        return losses

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Load; MMEngine would only log that a classifier stays random."""
        missing = [
            w for w in self.widths
            if f'{prefix}linears.{_key(w)}.weight' not in state_dict
        ]
        if missing:
            raise ValueError(
                f'The file has no linear layers for the widths {missing}. Use '
                'a checkpoint that was trained with them, or name its widths '
                '(model.head.widths). Weights of a pre-training go to '
                'model.backbone.init_cfg.checkpoint.')
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @torch.no_grad()
    def plain(self, width: float) -> LinearClsHead:
        """An ordinary head with a copy of the weights of ``width``."""
        linear = self.linear(width)
        head = LinearClsHead(self.num_classes, linear.in_features,
                             loss=self.loss_module, topk=self.topk,
                             cal_acc=self.cal_acc).to(linear.weight)
        head.fc.load_state_dict(linear.state_dict())
        return head.train(self.training)


def _key(width: float) -> str:
    """Under which a width's layer is kept: the width in millionths."""
    return f'w{round(width * 1000000):07d}'
