# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Union

from mmpretrain.models import ImageClassifier
from torch import nn

from us3l_mm.registry import MODELS


@MODELS.register_module()
class SubnetClassifier(ImageClassifier):
    """MMPretrain's classifier over a network of one width.

    There are two differences: ``in_channels`` of the head follow the width of
    the backbone, and a frozen backbone without a checkpoint is an error.

    Args:
        backbone (dict or nn.Module): A backbone with ``out_channels``, such
            as ``SlimmableResNet(width=0.5, init_cfg=dict(type='Pretrained',
            ...))``.
        neck (dict or nn.Module): A neck that pools and keeps the channels.
        head (dict or nn.Module): The head; a dict can leave out
            ``in_channels``.
        **kwargs: The other arguments of MMPretrain's ``ImageClassifier``.
    """

    def __init__(self, backbone: Union[dict, nn.Module],
                 neck: Union[dict, nn.Module], head: Union[dict, nn.Module],
                 **kwargs):
        if not isinstance(backbone, nn.Module):
            backbone = MODELS.build(backbone)
        if getattr(backbone, 'width', 1.0) is None:
            raise ValueError(
                'A SubnetClassifier has a backbone of one width, but this one '
                'runs at any width. Set one, as in model.backbone.width=0.5, '
                'or use us3l_mm.AllWidthsClassifier.')
        channels = backbone.out_channels[-1]
        if isinstance(head, dict):
            head = dict(dict(in_channels=channels), **head)
            given = head['in_channels']
        else:
            given = getattr(head, 'in_channels', channels)
        if given != channels:
            raise ValueError(
                f'The features of this backbone have {channels} channels, got '
                f'head.in_channels={given}. Leave it out: it follows the '
                'width.')
        super().__init__(backbone, neck, head, **kwargs)

    def init_weights(self) -> None:
        """Load the backbone's checkpoint, initialise the head."""
        check_checkpoint(self.backbone)
        super().init_weights()


def check_checkpoint(backbone: nn.Module) -> None:
    """Raise ValueError if a frozen backbone or ``init_cfg`` has no file."""
    cfg = getattr(backbone, 'init_cfg', None)
    if not isinstance(cfg, dict):
        cfg = {}
    pretrained = cfg.get('type') == 'Pretrained'
    frozen = not any(p.requires_grad for p in backbone.parameters())
    if (frozen and not pretrained) or (pretrained and not cfg['checkpoint']):
        raise ValueError(
            'The weights of the backbone are missing, so it would stay '
            'random. Give a checkpoint of the pre-training with statistics, '
            'by --cfg-options model.backbone.init_cfg.checkpoint=FILE. One of '
            'switchable norms has them; else FILE is from '
            'tools/evaluate_widths.py CONFIG CKPT --save-checkpoint FILE.')
