# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Brightness, contrast, saturation and hue of many images."""
from typing import Dict

import numpy as np
import torch
from mmpretrain.datasets.transforms import ColorJitter
from torch import Tensor

from .draws import between
from .operation import Operation, on_device, require

# The luminance of blue, green and red (ITU-R BT.601), as OpenCV and Pillow
# have it.
LUMINANCE = (0.114, 0.587, 0.299)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
# A colour of 8 bits has so many hues.
HUES = dict(cv2=256, pillow=255)


def luminance(images: Tensor, weights: tuple = LUMINANCE) -> Tensor:
    """The grey images (N, H, W) of ``images`` (N, 3, H, W)."""
    blue, green, red = images.unbind(1)
    return (blue * weights[0]).add_(green, alpha=weights[1]).add_(
        red, alpha=weights[2])


def blend(images: Tensor, factor: Tensor, to_mean: Tensor,
          to_grey: Tensor) -> None:
    """Blend images, in place, with black, their mean or their grey image.

    The result, limited to [0, 255], is ``factor * image + to_mean * mean +
    to_grey * grey`` with the luminance ``grey`` and its mean over an image.
    With a sum of factors of 1, ``to_mean`` makes it a change of contrast, and
    ``to_grey`` one of saturation; with neither, it is one of brightness.

    Args:
        images (Tensor): From 0 to 255, shape (N, 3, H, W).
        factor, to_mean, to_grey (Tensor): Of shape (N, ).
    """
    grey = luminance(images)
    mean = grey.mean((1, 2)).mul_(to_mean)
    grey.mul_(to_grey.view(-1, 1, 1)).add_(mean.view(-1, 1, 1))
    images.mul_(factor.view(-1, 1, 1, 1)).add_(grey[:, None]).clamp_(0, 255)


def turn_hue(images: Tensor, turns: Tensor) -> None:
    """Turn the hue of images in HSV, in place.

    Args:
        images (Tensor): Blue, green and red from 0 to 255, (N, 3, H, W).
        turns (Tensor): Shares of a full turn, from -0.5 to 0.5, (N, ).
    """
    blue, green, red = images.unbind(1)
    value = torch.maximum(torch.maximum(blue, green), red)
    chroma = value - torch.minimum(torch.minimum(blue, green), red)
    # Which channel is the largest, as 0 or 1: torch.where takes ten times as
    # long as a sum on a CPU.
    is_red = (red - value).sign_().add_(1)
    is_green = (green - value).sign_().add_(1).mul_(1 - is_red)
    is_blue = (1 - is_red).sub_(is_green)
    hue = (green - blue).mul_(is_red)
    hue.addcmul_(blue - red, is_green).addcmul_(red - green, is_blue)
    hue.div_(chroma.clamp(min=1e-4))  # grey has no hue, and no chroma
    hue.add_(is_green, alpha=2).add_(is_blue, alpha=4)  # sixths of a turn
    hue.add_(6 * turns.view(-1, 1, 1))
    # A channel loses all of the chroma where the hue is opposite to it, within
    # a sixth of a turn, and none of it from two sixths on. Offsets take the
    # opposite hue to 0.
    for channel, offset in ((blue, -1), (green, 1), (red, 3)):
        away = hue + offset
        away.sub_((away / 6).round_(), alpha=6).abs_()
        loss = away.neg_().add_(2).clamp_(0, 1).mul_(chroma)
        torch.sub(value, loss, out=channel)


class Jitter(Operation):
    """ColorJitter: the four changes in a random order.

    Args:
        transform (ColorJitter): The transform.
    """

    num_draws = 8

    def __init__(self, transform: ColorJitter):
        self.hues = HUES[require(transform, 'backend', HUES)]
        # None leaves it as it is.
        self.ranges = [
            transform.brightness or (1., 1.), transform.contrast or (1., 1.),
            transform.saturation or (1., 1.), transform.hue or (0., 0.)]

    def draw(self, numbers: np.ndarray,
             chosen: np.ndarray) -> Dict[str, np.ndarray]:
        """The images and their changes.

        Returns:
            dict: ``rows``, the images that are changed, (n, ); ``order``, the
            four changes in their order, (n, 4); ``factors`` of brightness,
            contrast and saturation, and the hue as a share of a turn, (n, 4).
        """
        rows = np.flatnonzero(chosen)
        order = numbers[rows, :4].argsort(axis=1)
        factors = np.stack([
            between(column, *limits)
            for column, limits in zip(numbers[rows, 4:].T, self.ranges)], 1)
        # As the transform, which turns the hue by whole steps of 8 bits.
        factors[:, HUE] = np.trunc(255 * factors[:, HUE]) / self.hues
        return dict(rows=rows, order=order, factors=factors)

    def apply(self, images: Tensor, drawn: Dict[str, np.ndarray]) -> Tensor:
        """The transformed images.

        The three blends are one equation, so they are computed for all images
        together. Images are sorted by the place of the hue in their order, so
        that those whose turn it is are next to each other.
        """
        order, count = drawn['order'], len(drawn['rows'])
        place = (order == HUE).argmax(axis=1)
        by_place = place.argsort(kind='stable')
        rest = np.delete(np.arange(len(images)), drawn['rows'])
        sorting = np.concatenate([drawn['rows'][by_place], rest])
        order, factors = order[by_place], drawn['factors'][by_place]
        blends = order[order != HUE].reshape(count, 3)
        chosen = np.take_along_axis(factors, blends, axis=1)
        numbers = on_device(
            np.stack([
                chosen, (1 - chosen) * (blends == CONTRAST),
                (1 - chosen) * (blends == SATURATION)]), images)
        turns = on_device(factors[:, HUE], images)
        ends = np.searchsorted(place[by_place], np.arange(5))
        turned = bool(factors[:, HUE].any())
        result = images.index_select(0, on_device(sorting, images))
        changed = result[:count]
        for step in range(4):
            begin, end = ends[step:step + 2]
            if turned and begin < end:
                turn_hue(changed[begin:end], turns[begin:end])
            if step < 3 and count:
                blend(changed, *numbers[:, :, step])
        return result.index_select(0, on_device(sorting.argsort(), images))
