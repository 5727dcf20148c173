# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import numpy as np
from mmcv.transforms import BaseTransform

from us3l_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class SwapRedBlue(BaseTransform):
    """Swap red and blue, from RGB to BGR or from BGR to RGB.

    The colour transforms of MMCV and MMPretrain expect BGR, the order in which
    files are read. MMPretrain's CIFAR is RGB: there, they would weight red as
    blue and shift the hue in the other direction. Use this as the first
    transform, with ``data_preprocessor.to_rgb=True``.
    """

    def transform(self, results: dict) -> dict:
        results['img'] = np.ascontiguousarray(results['img'][..., ::-1])
        return results
