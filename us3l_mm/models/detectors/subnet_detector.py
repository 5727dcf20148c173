# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from torch import nn

from us3l_mm.registry import MODELS


@MODELS.register_module(name='SubnetDetector')
def subnet_detector(detector: str, backbone: dict, neck: dict,
                    **kwargs) -> nn.Module:
    """A detector of MMDetection over a backbone of one width.

    What is built is MMDetection's own class, with its own keys. The one
    difference is that the neck's ``in_channels`` follow the backbone, so that
    ``model.backbone.width`` is all there is to change.

    Args:
        detector (str): A type such as 'MaskRCNN', 'FasterRCNN', 'RetinaNet'.
        backbone (dict): With ``out_channels``, such as
            ``SlimmableResNet(width=0.5)``.
        neck (dict): Its ``in_channels`` are replaced.
        **kwargs: The other arguments of the detector.

    Raises:
        ValueError: if the backbone runs at any width instead of at one.
    """
    # For its channels; a detector takes a dict only and builds its own.
    plan = MODELS.build(backbone)
    if getattr(plan, 'width', 1.0) is None:
        raise ValueError(
            'A SubnetDetector has a backbone of one width; this one runs at '
            'any. Say which: model.backbone.width=0.5.')
    neck = dict(neck, in_channels=list(plan.out_channels))
    return MODELS.build(
        dict(kwargs, type=detector, backbone=backbone, neck=neck))
