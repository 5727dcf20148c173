# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""From the transforms of a view to its batched form."""
from typing import Any, List, Sequence, Tuple

import numpy as np
import torch
from mmcv.transforms import (BaseTransform, RandomApply, RandomFlip,
                             RandomGrayscale)
from mmpretrain.datasets.transforms import (ColorJitter, GaussianBlur,
                                            RandomResizedCrop, Solarize)
from torch import Tensor

from .blur import Blur
from .colour_jitter import Jitter
from .operation import PER_IMAGE, Operation, on_device
from .resampling import Resampling
from .tones import Grey, Solarise


class Sometimes(Operation):
    """RandomApply: all of some operations, or none.

    Args:
        transform (RandomApply): The transform.
    """

    def __init__(self, transform: RandomApply):
        self.prob = transform.prob
        self.operations = [
            batched(each) for each in transform.transforms.transforms]
        self.num_draws = 1 + sum(each.num_draws for each in self.operations)

    def draw(self, numbers: np.ndarray, chosen: np.ndarray) -> List[Any]:
        """The parameters of each operation."""
        chosen = chosen & (numbers[:, 0] < self.prob)
        return draw_all(self.operations, numbers[:, 1:], chosen)

    def apply(self, images: Tensor, drawn: List[Any]) -> Tensor:
        """The images after all operations."""
        for operation, parameters in zip(self.operations, drawn):
            images = operation.apply(images, parameters)
        return images


OPERATIONS = {
    ColorJitter: Jitter,
    GaussianBlur: Blur,
    RandomApply: Sometimes,
    RandomGrayscale: Grey,
    Solarize: Solarise}


def batched(transform: BaseTransform) -> Operation:
    """The batched form of a transform of pixels.

    Raises:
        ValueError: If there is none.
    """
    kind = type(transform)  # a subclass may do something else
    if kind in OPERATIONS:
        return OPERATIONS[kind](transform)
    if kind is RandomFlip or kind is RandomResizedCrop:
        raise ValueError(
            f'{kind.__name__} has a batched form, but not here: '
            'RandomResizedCrop is the first transform of a view, and neither '
            'it nor RandomFlip is in a RandomApply. Move it, '
            f'{PER_IMAGE}.')
    names = sorted(each.__name__
                   for each in (*OPERATIONS, RandomFlip, RandomResizedCrop))
    raise ValueError(f'{kind.__name__} has no batched form, there are those '
                     f'of {", ".join(names)}. Remove it, {PER_IMAGE}.')


def draw_all(operations: Sequence[Operation], numbers: np.ndarray,
             chosen: np.ndarray) -> List[Any]:
    """The parameters of all operations, from successive random numbers."""
    ends = np.cumsum([each.num_draws for each in operations])
    return [
        each.draw(numbers[:, end - each.num_draws:end], chosen)
        for each, end in zip(operations, ends)]


class View:
    """One view of each image.

    Args:
        transforms (sequence[BaseTransform]): MMPretrain's and MMCV's
            transforms of one image. The first one may be another transform
            with a method ``batched_form``, which returns an object with the
            methods of ``Resampling``.

    Raises:
        ValueError: If a transform or an argument has no batched form, with
            those that have one.
    """

    def __init__(self, transforms: Sequence[BaseTransform]):
        transforms = [*transforms]
        flips = [each for each in transforms if type(each) is RandomFlip]
        first, crop = (transforms or [None])[0], None
        if type(first) is RandomResizedCrop:
            crop = transforms.pop(0)
        self.resampling: Any = Resampling(crop, flips)
        if hasattr(first, 'batched_form'):
            self.resampling = transforms.pop(0).batched_form()
            flips = []
        self.operations = [
            batched(each) for each in transforms if each not in flips]
        self.num_draws = self.resampling.num_draws + sum(
            each.num_draws for each in self.operations)

    def draw(self, numbers: np.ndarray,
             sizes: np.ndarray) -> Tuple[Any, List[Any]]:
        """The parameters of each image.

        Args:
            numbers (ndarray): Uniform in [0, 1), shape (N, num_draws).
            sizes (ndarray): Heights and widths of the images, (N, 2).
        """
        first = self.resampling.num_draws
        return (self.resampling.draw(numbers[:, :first], sizes),
                draw_all(self.operations, numbers[:, first:],
                         np.ones(len(sizes), dtype=bool)))

    def __call__(self, rows: Sequence[Tuple[np.ndarray, Tensor]],
                 crops: Tuple[np.ndarray, np.ndarray],
                 parameters: Sequence[Any]) -> Tensor:
        """The view of each image, from 0 to 255, of shape (N, 3, h, w).

        Args:
            rows (sequence): For each size, the positions of its images in the
                batch, (n, ), and the images, (n, H, 3, W).
            crops (tuple): Boxes and flips of all images.
            parameters (sequence): Those of each operation.
        """
        made = [
            self.resampling.apply(group, *(each[positions] for each in crops))
            for positions, group in rows]
        images = made[0]
        if len(made) > 1:
            sizes = {tuple(each.shape[-2:]) for each in made}
            if len(sizes) > 1:
                raise ValueError(
                    'The images of a batch have several sizes, such as '
                    f'{sorted(sizes)[:3]}, and a view without '
                    'RandomResizedCrop keeps them. Begin the view with one, '
                    'or resize the images before MultiView.')
            order = np.concatenate([positions for positions, _ in rows])
            images = torch.cat(made).index_select(
                0, on_device(order.argsort(), images))
        for operation, each in zip(self.operations, parameters):
            images = operation.apply(images, each)
        return images
