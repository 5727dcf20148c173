# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Optional, Tuple

from mmpretrain.models import NonLinearNeck
from torch import Tensor

from us3l_mm.models.layers import SlimmableLinear
from us3l_mm.registry import MODELS

# The hidden layers stay full at every width.
FULL_WIDTH_NORM = dict(type='us3l_mm.SlimmableBatchNorm1d',
                       slice_channels=False)


@MODELS.register_module()
class SlimmableProjector(NonLinearNeck):
    """MMPretrain's projector behind a backbone of any width.

    Only its first linear layer is slimmable, and only that layer's *input*:
    hidden and output features stay full, so that the embeddings of all widths
    lie in one space. Source: US3L, arXiv 2303.06870. Arguments are those of
    :class:`mmpretrain.models.NonLinearNeck`, and those of
    :class:`~us3l_mm.models.layers.SlimmableLinear` that say how the features
    of the backbone narrow, if at all: :class:`US3LAlgorithm` asks it for its
    ``feature_rounding``.

    Shapes: a tuple of one map (N, c, H, W), or of features (N, c), to a tuple
    of one (N, out).
    """

    def __init__(self, in_channels: int, hid_channels: int, out_channels: int,
                 with_bias: bool = False, norm_cfg: dict = FULL_WIDTH_NORM,
                 divisor: int = 8, steps: Optional[int] = None,
                 slice_in: bool = True, **kwargs):
        super().__init__(in_channels, hid_channels, out_channels,
                         with_bias=with_bias, norm_cfg=norm_cfg, **kwargs)
        self.fc0 = SlimmableLinear(in_channels, hid_channels, with_bias,
                                   slice_in=slice_in, slice_out=False,
                                   divisor=divisor, steps=steps)

    def forward(self, x: Tuple[Tensor, ...]) -> Tuple[Tensor, ...]:
        # To the pooling, features such as a class token's are one pixel.
        return super().forward(
            tuple(features[..., None, None] if features.ndim == 2 else features
                  for features in x))
