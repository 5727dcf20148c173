# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What the batched forms of transforms have in common."""
from typing import Any, Collection, List

import numpy as np
import torch
from torch import Tensor

PER_IMAGE = ('or augment each image on its own, in the workers of the loader: '
             'default_hooks.augmentation=None')


class Operation:
    """A random transform of the pixels of many images.

    Random numbers become parameters on the host (:meth:`draw`), so that which
    images an operation concerns is known without waiting for the device.

    Attributes:
        num_draws (int): The number of uniform random numbers for an image.
    """

    num_draws = 0

    def draw(self, numbers: np.ndarray, chosen: np.ndarray) -> Any:
        """The parameters of each image.

        Args:
            numbers (ndarray): Uniform in [0, 1), shape (N, num_draws).
            chosen (ndarray): Whether the operation may be applied to an
                image at all, bool of shape (N, ).
        """
        raise NotImplementedError

    def apply(self, images: Tensor, drawn: Any) -> Tensor:
        """The transformed images.

        Args:
            images (Tensor): Blue, green and red from 0 to 255, floating point
                of shape (N, 3, H, W). They may be changed.
            drawn (Any): What :meth:`draw` returned.
        """
        raise NotImplementedError


def on_device(values: np.ndarray, images: Tensor) -> Tensor:
    """``values`` on the device of ``images``, without waiting for it.

    Floating point numbers get the type of the images.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if tensor.is_floating_point():
        tensor = tensor.to(images.dtype)
    if images.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(images.device, non_blocking=True)


def require(transform: Any, argument: str, allowed: Collection) -> Any:
    """The value of an argument, if it is one of those ``allowed``.

    Raises:
        ValueError: With the name, the value, and what is allowed.
    """
    value = getattr(transform, argument)
    if value not in allowed:
        names: List[str] = [repr(each) for each in allowed]
        raise ValueError(
            f'{type(transform).__name__}({argument}={value!r}) has no batched '
            f'form, {argument} is one of {", ".join(names)}. Change it, '
            f'{PER_IMAGE}.')
    return value
