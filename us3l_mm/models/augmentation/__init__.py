# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from .batch_augmentation import BatchAugmentation, BatchedViews

__all__ = ['BatchAugmentation', 'BatchedViews']
