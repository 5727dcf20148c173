# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Using a checkpoint in Python.

>>> from us3l_mm.apis import (at_width, calibrate, load_backbone,
...                           slice_network)
>>> network = load_backbone('work_dirs/us3l/epoch_400.pth')
>>> calibrate(network, batches, [0.25, 0.5])  # tensors (N, 3, H, W)
>>> with at_width(network, 0.5):
...     features = network(images)[-1].mean(dim=(2, 3))  # (N, c)
>>> sliced = slice_network(network, 0.5)  # an ordinary torch module
>>> torch.save(dict(state_dict=sliced.state_dict()), 'w050.pth')
"""
from us3l_mm.evaluation.calibration import calibrate
from us3l_mm.evaluation.loading import load_backbone
from us3l_mm.export import slice_backbone, slice_network
from us3l_mm.models import at_width, set_subnet
from .budget import Budget
from .pruned_file import PruneReport, prune_checkpoint
from .sliced_file import SliceReport, slice_checkpoint

__all__ = [
    'Budget', 'PruneReport', 'SliceReport', 'at_width', 'calibrate',
    'load_backbone', 'prune_checkpoint', 'set_subnet', 'slice_backbone',
    'slice_checkpoint', 'slice_network']
