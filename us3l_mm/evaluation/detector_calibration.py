# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Batch-norm statistics of a detector that runs many sub-networks."""
from typing import Optional, Sequence

from torch import nn
from torch.utils.data import DataLoader

from us3l_mm.models.layers import SubnetLike
from .calibration import calibrate
from .data import shuffled


def calibrate_detector(detector: nn.Module, loader: DataLoader,
                       subnets: Optional[Sequence[SubnetLike]] = None,
                       num_images: Optional[int] = None,
                       progress: Optional[str] = None) -> int:
    """Measure and store the statistics of ``subnets``; see :func:`calibrate`.

    Images come in batches as in training, augmented and padded in the same
    way, in a fixed random order that is shared out over the processes, so the
    number of processes does not matter. They pass through the modules that
    have norms: the backbone, also the neck, or, if the images are annotated,
    also the heads, which see the regions of training.

    Args:
        detector (nn.Module): An ``AllWidthsDetector``.
        loader (DataLoader): The loader of the training. The order of its
            images is not changed; its transforms change the random states.
        subnets (sequence, optional): The sub-networks, or their widths.
            Defaults to those that the detector was built for.
        num_images (int, optional): Number of images to use, over all
            processes together. Defaults to all.
        progress (str, optional): The text before a progress bar. Defaults to
            None for no bar.

    Returns:
        int: The number of images used, over all processes.
    """
    batches = (detector.data_preprocessor(batch, training=True)
               for batch in shuffled(loader, num_images))
    return calibrate(detector, ((batch['inputs'], batch['data_samples'])
                                for batch in batches),
                     detector.subnets if subnets is None else subnets,
                     num_images, progress, is_share=True,
                     forward=lambda batch: detector.run_norms(*batch))
