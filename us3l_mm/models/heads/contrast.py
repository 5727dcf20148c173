# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What three contrastive methods compare, and the loss of it.

A head says which views are queries, turns embeddings into queries, compares
these with keys, and picks the key of the own image by cross entropy.
"""
from typing import Any, List, Optional, Tuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from us3l_mm.models.losses.gather import gather_rows
from us3l_mm.models.losses.similarities import (
    batch_cosines, check_temperature, pair_cosines, queue_cosines, unit)
from us3l_mm.registry import MODELS

Similarities = List[Tuple[Tensor, Tensor]]


class Contrast(BaseModule):
    """Base class of the contrastive heads.

    Args:
        temperature (float): T, dividing cosines.
        predictor (dict, optional): A predictor of the queries, from a tuple of
            embeddings (N, d) to one of (N, d). Defaults to None.
        init_cfg (dict, optional): Initialization config of MMEngine.

    Attributes:
        num_queries (int): The number of views that the student encodes.
        joint (bool): Whether it encodes them as one batch, with common
            statistics.
        has_keys (bool): Whether a momentum encoder provides keys.
    """

    num_queries, joint, has_keys = 2, False, True

    def __init__(self, temperature: float, predictor: Optional[dict] = None,
                 init_cfg: Optional[dict] = None):
        super().__init__(init_cfg)
        self.temperature = check_temperature(self, temperature)
        self.predictor: Any = predictor and MODELS.build(predictor)

    def queries(self, embeddings: List[Tensor]) -> List[Tensor]:
        """The L2-normalised queries of embeddings, each (N, d)."""
        if self.predictor is not None:
            embeddings = [self.predictor((z, ))[0] for z in embeddings]
        return [unit(z) for z in embeddings]

    def similarities(self, queries: List[Tensor],
                     keys: List[Tensor]) -> Similarities:
        """Cosines (rows, classes) with the own class of each row, in a list.

        Args:
            queries (list[Tensor]): L2-normalised, each (N, d).
            keys (list[Tensor]): For each query the key of the other view,
                (N, d); empty if there is no momentum encoder.
        """
        raise NotImplementedError(
            f'{type(self).__name__} does not say what is compared.')

    def loss(self, similarities: Similarities) -> Tensor:
        """The contrastive loss, a scalar: a sum over ``similarities``."""
        return sum(
            F.cross_entropy(cosines / self.temperature, own)
            for cosines, own in similarities)

    def end(self, keys: List[Tensor]) -> None:
        """Finish a batch with these keys, as of :meth:`similarities`."""

    def check_batch(self, size: int) -> None:
        """Raise ValueError if batches of ``size`` images cannot be used."""


@MODELS.register_module()
class MoCoV2Contrast(Contrast):
    """View 1 with its own key, and with a queue of earlier keys.

    Source: MoCo v2, arXiv 2003.04297.

    Args:
        channels (int): d, the size of an embedding. Defaults to 128.
        queue_length (int): K, a multiple of the number of images in the batch
            of all processes. Defaults to 65536.
        temperature (float): Defaults to 0.2.
        **kwargs: Those of :class:`Contrast`.
    """

    num_queries = 1

    def __init__(self, channels: int = 128, queue_length: int = 65536,
                 temperature: float = 0.2, **kwargs):
        super().__init__(temperature, **kwargs)
        # Rows, so that a product reads and a batch writes them in one piece.
        self.register_buffer('queue',
                             F.normalize(torch.randn(queue_length, channels)))
        self.register_buffer('queue_ptr', torch.zeros((), dtype=torch.long))

    def similarities(self, queries: List[Tensor],
                     keys: List[Tensor]) -> Similarities:
        return [queue_cosines(queries[0], keys[0], self.queue)]

    @torch.no_grad()
    def end(self, keys: List[Tensor]) -> None:
        """Put the keys of all processes in the place of the oldest ones."""
        new = gather_rows(unit(keys[0]))
        rows = torch.arange(len(new), device=new.device) + self.queue_ptr
        self.queue.index_copy_(0, rows % len(self.queue),
                               new.to(self.queue.dtype))
        self.queue_ptr.add_(len(new)).remainder_(len(self.queue))

    def check_batch(self, size: int) -> None:
        if len(self.queue) % size:
            raise ValueError(
                f'A queue of {len(self.queue)} keys is not a multiple of the '
                f'{size} images in a batch of all processes. Set '
                'model.head.queue_length to one, such as '
                f'{size * max(len(self.queue) // size, 1)}.')


@MODELS.register_module()
class MoCoV3Contrast(Contrast):
    """Either view with the keys of the other view, of the whole batch.

    Each direction is multiplied by 2 T, which makes its size independent of
    the temperature. Source: MoCo v3, arXiv 2104.02057, algorithm 1.

    Args:
        predictor (dict): The predictor of the queries.
        temperature (float): Defaults to 1.0.
        gather (bool): Whether the keys are those of all processes. Defaults
            to True.
        **kwargs: Those of :class:`Contrast`.
    """

    def __init__(self, predictor: dict, temperature: float = 1.0,
                 gather: bool = True, **kwargs):
        super().__init__(temperature, predictor, **kwargs)
        self.gather = gather

    def similarities(self, queries: List[Tensor],
                     keys: List[Tensor]) -> Similarities:
        return [
            batch_cosines(query, key, self.gather)
            for query, key in zip(queries, keys)]

    def loss(self, similarities: Similarities) -> Tensor:
        return 2 * self.temperature * super().loss(similarities)


@MODELS.register_module()
class SimCLRContrast(Contrast):
    """Every embedding of both views with all others.

    There is no momentum encoder; both views have gradients. Source: SimCLR,
    arXiv 2002.05709, equation 1.

    Args:
        temperature (float): Defaults to 0.1.
        gather (bool): Whether the embeddings of all processes are compared, so
            that several processes train what one would on the joint batch.
            Defaults to True.
        **kwargs: Those of :class:`Contrast`.
    """

    joint, has_keys = True, False

    def __init__(self, temperature: float = 0.1, gather: bool = True,
                 **kwargs):
        super().__init__(temperature, **kwargs)
        self.gather = gather

    def similarities(self, queries: List[Tensor],
                     keys: List[Tensor]) -> Similarities:
        return [pair_cosines(queries[0], queries[1], self.gather)]
