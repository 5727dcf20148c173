# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from torch import nn

from us3l_mm.registry import MODELS


@MODELS.register_module(name='SubnetDetector')
def subnet_detector(detector: str, backbone: dict, neck: dict,
                    **kwargs) -> nn.Module:
    """A detector of MMDetection over a backbone of one width.

    The result is of MMDetection's own class, with its keys. The
    ``in_channels`` of the neck follow the backbone, so that another width
    needs no change but that of ``model.backbone.width``.

    Args:
        detector (str): A type of MMDetection such as 'MaskRCNN', 'FasterRCNN'
            or 'RetinaNet'.
        backbone (dict): A backbone with ``out_channels``, such as
            ``SlimmableResNet(width=0.5)``.
        neck (dict): The neck; its ``in_channels`` are replaced.
        **kwargs: The other arguments of the detector.

    Raises:
        ValueError: If the backbone runs at any width instead of at one.
    """
    # Built for its channels: a detector takes a dict and builds its own.
    outline = MODELS.build(backbone)
    if getattr(outline, 'width', 1.0) is None:
        raise ValueError(
            'A SubnetDetector has a backbone of one width, but this one runs '
            'at any width. Set one, as in model.backbone.width=0.5.')
    neck = dict(neck, in_channels=list(outline.out_channels))
    return MODELS.build(
        dict(kwargs, type=detector, backbone=backbone, neck=neck))
