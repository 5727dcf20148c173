# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from us3l_mm.registry import MODELS
from .subnet import SlimmableLayer, SubnetLike
from .switchable_norm import synchronised


# `_BatchNorm` is named as a base because MMEngine's initialisers look at the
# direct bases of a class.
@MODELS.register_module()
class SharedBatchNorm2d(SlimmableLayer, _BatchNorm):
    """An ordinary batch norm that all sub-networks use.

    Its running statistics are those of all of them together. It is for
    sub-networks of the same width, such as dense and gated.

    Args:
        num_features (int): Number of channels.
        sync (bool): Whether a batch has the statistics of all processes
            together. Defaults to False.
        **kwargs: Other arguments of the plain batch norm.

    Shapes: (N, c, H, W) to the same.
    """

    _check_input_dim = nn.BatchNorm2d._check_input_dim

    def __init__(self, num_features: int, sync: bool = False, **kwargs):
        super().__init__(num_features, **kwargs)
        self.sync = sync

    def on_subnet(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.sync and get_world_size() > 1:
            return synchronised(self, x)
        return super().forward(x)

    @torch.no_grad()
    def plain(self, subnet: SubnetLike) -> nn.BatchNorm2d:
        """A copy as a plain layer, the same for each ``subnet``."""
        norm = nn.BatchNorm2d(self.num_features, self.eps, self.momentum,
                              self.affine, self.track_running_stats)
        norm.load_state_dict(
            {
                k: v.clone()
                for k, v in self.state_dict().items()}, assign=True)
        return norm.train(self.training)
