# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Dict, Union

from mmpretrain.models import ImageClassifier
from torch import nn

from us3l_mm.models.layers import check_subnets, set_sync
from us3l_mm.models.selfsup import Batch, MultiPassModel, Pass, Plan
from us3l_mm.models.selfsup.checkpointing import use_plain_checkpoints
from us3l_mm.models.selfsup.passes import UPDATE_MODES
from us3l_mm.registry import MODELS
from .all_widths_classifier import backbone_and_head


@MODELS.register_module()
class SlimmableClassifier(MultiPassModel, ImageClassifier):
    """A network that labels train at several widths: the supervised control.

    A training step runs the sub-networks of the plan one after the other,
    forward and backward, and makes one optimizer step with the sum of their
    gradients. Predictions are those of the sub-network that is set
    (:func:`~us3l_mm.models.layers.at`). Source: slimmable networks, arXiv
    1812.08928; the supervised experiments of SlimCLR, 2209.15525.

    Args:
        backbone (dict or nn.Module): A slimmable backbone.
        neck (dict or nn.Module): A neck that pools and keeps the channels.
        head (dict): The arguments of a
            :class:`~us3l_mm.models.heads.SwitchableLinearHead` without
            ``in_channels``, which follow the widths.
        update_mode (str): 'sequential' for an optimizer step after each pass,
            'accumulate' for one after the last pass. Defaults to
            'accumulate'.
        sync_norms (bool): Whether batch norms use the statistics of all
            processes together. Defaults to False.
        **kwargs: The other arguments of MMPretrain's ``ImageClassifier``.
    """

    def __init__(self, backbone: Union[dict,
                                       nn.Module], neck: Union[dict,
                                                               nn.Module],
                 head: dict, update_mode: str = 'accumulate',
                 sync_norms: bool = False, **kwargs):
        if update_mode not in UPDATE_MODES:
            raise ValueError(f'update_mode is one of {UPDATE_MODES}, got '
                             f'{update_mode!r}.')
        backbone, head = backbone_and_head(backbone, head)
        if head.get('distill_weight'):
            raise ValueError(
                'The labels alone train a SlimmableClassifier, got '
                f'head.distill_weight={head["distill_weight"]}. Remove it.')
        super().__init__(backbone, neck, head, **kwargs)
        check_subnets(self.backbone, self.head.subnets)
        use_plain_checkpoints(self.backbone)
        set_sync(self, sync_norms)
        self.update_mode = update_mode
        self.default_plan = Plan.fixed(self.head.subnets)

    def pass_loss(self, batch: Batch, pass_: Pass) -> Dict[str, dict]:
        """The losses of one pass, at the width that the layers are set to."""
        losses = self.loss(batch.views['inputs'], batch.views['data_samples'])
        return dict(losses={f'loss_{pass_.name}': losses['loss']})
