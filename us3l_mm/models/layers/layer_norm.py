# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from us3l_mm.registry import MODELS
from .channels import active_steps
from .subnet import SlimmableLayer, SubnetLike, Subnet


@MODELS.register_module()
class SlimmableLayerNorm(SlimmableLayer, nn.LayerNorm):
    """Layer norm over leading features.

    At width w it normalises by mean and variance of these, and uses
    ``weight[:c]`` and ``bias[:c]``. There is nothing to calibrate.

    Args:
        num_features (int): Features at full width.
        steps (int): They narrow in so many equal steps, such as the heads of
            the attention beside it.
        **kwargs: Those of :class:`torch.nn.LayerNorm`.

    Shapes: (..., c) to the same.
    """

    def __init__(self, num_features: int, steps: int, **kwargs):
        super().__init__(num_features, **kwargs)
        self.steps = steps
        self.on_subnet()

    def active(self, width: float) -> int:
        """Features at ``width``."""
        return active_steps(self.normalized_shape[0], width, self.steps)

    def on_subnet(self) -> None:
        self.active_features = self.active(self.width)

    def forward(self, x: Tensor) -> Tensor:
        c = self.active_features
        weight = None if self.weight is None else self.weight[:c]
        bias = None if self.bias is None else self.bias[:c]
        return F.layer_norm(x, (c, ), weight, bias, self.eps)

    @torch.no_grad()
    def plain(self, subnet: SubnetLike) -> nn.LayerNorm:
        """A plain layer norm with a copy of the weights of ``subnet``."""
        c = self.active(Subnet.of(subnet).width)
        like = next(self.parameters(), torch.empty(0))
        norm = nn.LayerNorm(c, self.eps, self.elementwise_affine, self.bias
                            is not None, device=like.device, dtype=like.dtype)
        for own, whole in zip(norm.parameters(), self.parameters()):
            own.copy_(whole[:c])
        return norm.train(self.training)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, active={self.active_features}'
