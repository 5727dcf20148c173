# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import numpy as np
from mmcv.transforms import BaseTransform

from us3l_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class SwapRedBlue(BaseTransform):
    """Make a BGR image of an RGB image, and the reverse.

    Colour operations of MMCV and MMPretrain are for BGR images, which is how
    files are read. MMPretrain's CIFAR is RGB: on it, they would weight red as
    blue and turn the hue the other way. To be used at the beginning of a
    pipeline, with ``data_preprocessor.to_rgb=True``.
    """

    def transform(self, results: dict) -> dict:
        results['img'] = np.ascontiguousarray(results['img'][..., ::-1])
        return results
