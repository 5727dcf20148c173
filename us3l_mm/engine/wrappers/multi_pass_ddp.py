# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Dict, Optional

from mmengine.model import MMDistributedDataParallel
from torch import Tensor

from us3l_mm.models.selfsup import run_passes
from us3l_mm.registry import MODEL_WRAPPERS


@MODEL_WRAPPERS.register_module()
class MultiPassDistributedDataParallel(MMDistributedDataParallel):
    """Distributed data parallel training with several passes per batch.

    MMEngine's wrapper never calls the algorithm's ``train_step``; this one
    runs the same :func:`~us3l_mm.models.selfsup.run_passes` through itself.

    Args:
        module (nn.Module): The algorithm.
        find_unused_parameters (bool, optional): Whether to look for
            parameters that a pass leaves unused, at some expense. Defaults to
            None: what the algorithm says (``leaves_unused``).
        broadcast_buffers (bool): Whether the buffers of rank 0 overwrite
            those of the other processes before each pass. Switchable norms
            are the only ones that track statistics in training; with
            ``sync_norms=True`` these are equal on all processes anyway, else
            rank 0 saves its own, as usual. Defaults to False.
        **kwargs: Arguments of ``MMDistributedDataParallel``.
    """

    def __init__(self, module, find_unused_parameters: Optional[bool] = None,
                 broadcast_buffers: bool = False, **kwargs):
        needed = getattr(module, 'leaves_unused', True)
        if find_unused_parameters is None:
            find_unused_parameters = needed
        elif needed and not find_unused_parameters:
            # Replicas would drift apart silently.
            raise ValueError(
                'A pass leaves parameters unused (the heads of the other '
                'passes, or gates in a dense pass), so '
                'find_unused_parameters=False is not possible here; leave it '
                'out.')
        if next(module.parameters()).device.type == 'cpu':
            kwargs['device_ids'] = None  # the Runner names GPUs regardless
        super().__init__(module, find_unused_parameters=find_unused_parameters,
                         broadcast_buffers=broadcast_buffers, **kwargs)

    def train_step(self, data: dict, optim_wrapper) -> Dict[str, Tensor]:
        """Train on one batch, each pass through this wrapper."""
        return run_passes(self.module, self, data, optim_wrapper)
