# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Optional, Union

from mmengine.model import BaseModule
from torch import Tensor, nn

from us3l_mm.models.layers import at_least_single
from us3l_mm.registry import MODELS


@MODELS.register_module()
class PredictionHead(BaseModule):
    """A predictor, and the loss between its output and a target.

    It differs from MMPretrain's ``LatentPredictHead`` in that the loss is
    computed in single precision where the networks run in half precision, and
    in that there may be no predictor.

    Args:
        loss (dict): Config of a loss of predictions and targets, both (N, d).
        predictor (dict or nn.Module, optional): Maps a tuple of embeddings
            (N, d) to a tuple of predictions (N, d). Defaults to None: the
            embeddings are the predictions.
        weight (float): Weight of each of the two directions, view 1 against
            the target of view 2 and back: 0.5 averages them, 1.0 adds them,
            as in MoCo v3. Defaults to 0.5.
        init_cfg (dict, optional): Initialization config of MMEngine.
    """

    def __init__(self, loss: dict, predictor: Union[dict, nn.Module,
                                                    None] = None,
                 weight: float = 0.5, init_cfg: Optional[dict] = None):
        super().__init__(init_cfg)
        self.weight = weight
        self.loss_module = MODELS.build(loss)
        self.predictor: Optional[nn.Module] = (MODELS.build(predictor)
                                               if isinstance(predictor, dict)
                                               else predictor)

    def loss(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar, of one direction.

        Both ``embeddings`` and ``targets`` are (N, d). Gradients reach the
        embeddings only.
        """
        if self.predictor is not None:
            embeddings, = self.predictor((embeddings, ))
        return self.weight * self.loss_module(
            at_least_single(embeddings), at_least_single(targets.detach()))
