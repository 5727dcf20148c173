# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Any, Dict, Optional, Union

from mmengine.model import BaseModel
from torch import Tensor

from .passes import Batch, run_passes
from .plan import Pass


class MultiPassModel(BaseModel):
    """Mix-in for a model whose training step is a list of passes.

    It stands before the class of an algorithm, a classifier or a detector,
    whose modules, keys and arguments stay. A subclass says what a pass
    learns, in :meth:`pass_loss`, and has an ``update_mode`` and the
    ``default_plan`` of batches that bring none.

    Attributes:
        leaves_unused (bool): Whether a pass may leave parameters without a
            gradient, which distributed training then has to look for.
            Defaults to True: the heads of other passes, private norms.
    """

    leaves_unused = True

    def train_step(self, data: dict, optim_wrapper) -> Dict[str, Tensor]:
        """Train on one batch; see :func:`run_passes`."""
        return run_passes(self, self, data, optim_wrapper)

    def forward(self, inputs: Union[Tensor, Batch], data_samples=None,
                mode: str = 'tensor', pass_: Optional[Pass] = None):
        """OpenMMLab's modes, where ``loss`` is one pass over a batch.

        Args:
            inputs (Tensor or Batch): Images (N, 3, H, W); in mode 'loss' the
                batch.
            data_samples (list, optional): The samples of the images.
            mode (str): 'tensor', 'predict' or 'loss', as far as the model has
                it. Defaults to 'tensor'.
            pass_ (Pass, optional): The pass to compute the loss of.
        """
        if mode != 'loss':
            return super().forward(inputs, data_samples, mode)
        if pass_ is None:
            raise RuntimeError(
                f'{type(self).__name__} was asked for a loss without a pass, '
                'as a stock wrapper does, which would train the full width '
                'alone. Set model_wrapper_cfg=dict(type='
                "'us3l_mm.MultiPassDistributedDataParallel').")
        return self.pass_loss(inputs, pass_)

    def views(self, data: dict) -> Any:
        """What the passes see of a batch: preprocessed, by default a dict."""
        return self.data_preprocessor(data, training=True)

    def begin(self, batch: Batch) -> None:
        """Prepare a batch, once and without gradient; fills its targets."""

    def pass_loss(self, batch: Batch, pass_: Pass) -> Dict[str, dict]:
        """The losses of one pass, at the sub-network that the layers run.

        Returns:
            dict: ``losses`` (dict[str, Tensor]) to add up; optionally ``log``
            (dict) and ``carried`` (dict), detached tensors for later passes.
        """
        raise NotImplementedError(f'{type(self).__name__} has no loss.')

    def end(self, batch: Batch) -> None:
        """Finish a batch after its last pass."""
