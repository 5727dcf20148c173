# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Dict, Optional, Union

from mmpretrain.models import ImageClassifier
from torch import Tensor, nn

from us3l_mm.models.layers import check_subnets, set_sync
from us3l_mm.models.selfsup import Batch, Pass, Plan, check_pass, run_passes
from us3l_mm.models.selfsup.checkpointing import use_plain_checkpoints
from us3l_mm.models.selfsup.passes import UPDATE_MODES
from us3l_mm.registry import MODELS
from .all_widths_classifier import backbone_and_head


@MODELS.register_module()
class SlimmableClassifier(ImageClassifier):
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

    def train_step(self, data: dict, optim_wrapper) -> Dict[str, Tensor]:
        """Train on one batch; see :func:`~us3l_mm.models.run_passes`."""
        return run_passes(self, self, data, optim_wrapper)

    def views(self, data: dict) -> dict:
        """The preprocessed ``inputs`` (N, 3, H, W) and ``data_samples``."""
        return self.data_preprocessor(data, training=True)

    def begin(self, batch: Batch) -> None:
        """Do nothing, since all widths learn from the labels alone."""

    def end(self, batch: Batch) -> None:
        """Do nothing."""

    def forward(self, inputs: Union[Tensor, Batch], data_samples=None,
                mode: str = 'tensor', pass_: Optional[Pass] = None):
        """MMPretrain's modes, where ``loss`` is one pass over a batch.

        Args:
            inputs (Tensor or Batch): Images (N, 3, H, W); in mode 'loss' the
                batch.
            data_samples (list, optional): The samples of the images.
            mode (str): 'tensor', 'predict' or 'loss'. Defaults to 'tensor'.
            pass_ (Pass, optional): The pass to compute the loss of.
        """
        if mode != 'loss':
            return super().forward(inputs, data_samples, mode)
        name = check_pass(self, pass_).name
        losses = self.loss(inputs.views['inputs'],
                           inputs.views['data_samples'])
        return dict(losses={f'loss_{name}': losses['loss']})
