# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Optional

from mmengine.model import BaseModule
from torch import Tensor, nn

from us3l_mm.models.layers import at_least_single
from us3l_mm.registry import MODELS


@MODELS.register_module()
class PairHead(BaseModule):
    """A loss between the embeddings of two views, which both learn.

    Without a predictor it is ``loss(z1, z2)``, as in VICReg, Barlow Twins and
    SimCLR. With one, each view predicts the other, which has no gradient, and
    the two are averaged, as in SimSiam (arXiv 2011.10566).

    Args:
        loss (dict): Config of a loss of two embeddings (N, d).
        predictor (dict, optional): Maps a tuple of embeddings (N, d) to a
            tuple of predictions (N, d). Defaults to None.
        init_cfg (dict, optional): Initialization config of MMEngine.
    """

    def __init__(self, loss: dict, predictor: Optional[dict] = None,
                 init_cfg: Optional[dict] = None):
        super().__init__(init_cfg)
        self.loss_module = MODELS.build(loss)
        self.predictor: Optional[nn.Module] = None
        if predictor is not None:
            self.predictor = MODELS.build(predictor)

    def loss(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss, a scalar, of ``z1`` and ``z2``, both (N, d)."""
        if self.predictor is None:
            return self.loss_module(at_least_single(z1), at_least_single(z2))
        (p1, ), (p2, ) = self.predictor((z1, )), self.predictor((z2, ))
        return 0.5 * sum(
            self.loss_module(at_least_single(p), at_least_single(z.detach()))
            for p, z in ((p1, z2), (p2, z1)))
