# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import List, Optional, Sequence, Union

import numpy as np
import torch
from mmpretrain.datasets.transforms import MultiView
from mmpretrain.registry import TRANSFORMS
from torch import Tensor, nn

from us3l_mm.registry import MODELS
from .draws import uniforms
from .view import View

# On a CPU, so many values are processed together: a few tensors of this size
# fit into the cache, and memory for them is not asked for again and again.
CACHED = 2**18
DTYPES = ('float32', 'float16', 'bfloat16')


class BatchedViews:
    """The views of ``MultiView``, of whole batches.

    Args:
        multi_view (MultiView): The transform.
        dtype (str): The type of the images between the operations.
    """

    def __init__(self, multi_view: MultiView, dtype: str = 'float32'):
        if dtype not in DTYPES:
            raise ValueError(f'dtype is one of {DTYPES}, got {dtype!r}.')
        self.dtype = getattr(torch, dtype)
        self.views = [View(each.transforms) for each in multi_view.transforms]

    @torch.no_grad()
    def __call__(self, images: Union[Tensor, Sequence[Tensor]],
                 seeds: Sequence[int]) -> List[Tensor]:
        """The views of each image, a function of the image and its seed.

        Args:
            images (Tensor or sequence[Tensor]): Of 8 bits, in the order of
                colours that the transforms expect. A tensor of shape (N, 3, H,
                W), or tensors of shape (3, H, W) with sizes of their own.
            seeds (sequence[int]): The seed of each image.

        Returns:
            list[Tensor]: For each view the images, from 0 to 255, of shape
            (N, 3, h, w).
        """
        count = len(seeds)
        if images[0].device.type == 'cpu':
            largest = max(image.numel() for image in images)
            count = max(CACHED // largest, 1)
        parts = [
            self._views(images[begin:begin + count],
                        np.asarray(seeds[begin:begin + count]))
            for begin in range(0, len(seeds), count)]
        return [torch.cat(view) for view in zip(*parts)]

    def _views(self, images: Union[Tensor, Sequence[Tensor]],
               seeds: np.ndarray) -> List[Tensor]:
        """The views of images that are processed together."""
        groups = _by_size(images)
        sizes = np.empty((len(seeds), 2), dtype=np.int64)
        for positions, group in groups:
            sizes[positions] = group.shape[-2:]
        rows = [(positions, group.to(self.dtype).transpose(1, 2).contiguous())
                for positions, group in groups]
        ends = np.cumsum([view.num_draws for view in self.views])
        numbers = uniforms(seeds, ends[-1])
        return [
            view(rows, *view.draw(numbers[:, end - view.num_draws:end], sizes))
            for view, end in zip(self.views, ends)]


def _by_size(images: Union[Tensor, Sequence[Tensor]]) -> list:
    """Positions of the images of each size, and the images, (n, 3, h, w)."""
    if isinstance(images, Tensor):
        return [(np.arange(len(images)), images)]
    groups: dict = {}
    for position, image in enumerate(images):
        groups.setdefault(tuple(image.shape), []).append(position)
    return [(np.array(rows), torch.stack([images[row] for row in rows]))
            for rows in groups.values()]


@MODELS.register_module()
class BatchAugmentation(nn.Module):
    """Make the views of a batch on the device, then preprocess them.

    What ``MultiView`` does to one image in a worker of the loader, this does
    to all images of a batch, with random numbers of their own for each image
    and view. They are a function of the seed that
    :class:`~us3l_mm.datasets.SeededSampler` sends with the index of a sample,
    so neither the number of workers, nor that of processes, nor the device
    changes what is drawn, and a resumed run continues.

    Parameters have the distributions of the transforms. The pixels of a
    transform with the same parameters differ by what the transform rounds to
    8 bits: here, nothing is rounded between the operations.

    :class:`~us3l_mm.engine.BatchAugmentationHook` puts this in the place of
    the preprocessor of a model, and takes ``MultiView`` out of its pipeline.

    Args:
        views (dict or MultiView): MMPretrain's ``MultiView``, or its arguments
            ``num_views`` and ``transforms``. A view consists of
            ``RandomResizedCrop`` (first), ``RandomFlip``, ``ColorJitter``,
            ``RandomGrayscale``, ``GaussianBlur``, ``Solarize``, and
            ``RandomApply`` of these.
        preprocessor (dict or nn.Module): The preprocessor of the views.
        dtype (str): The type of the images between the operations: 'float32',
            'float16' or 'bfloat16'. The preprocessor makes them float32.
            Defaults to 'float32'.

    Raises:
        ValueError: If a transform or an argument has no batched form, with
            those that have one.
    """

    def __init__(self, views: Union[dict, MultiView],
                 preprocessor: Union[dict, nn.Module], dtype: str = 'float32'):
        super().__init__()
        if isinstance(views, dict):
            views = TRANSFORMS.build(dict(views, type='MultiView'))
        if isinstance(preprocessor, dict):
            preprocessor = MODELS.build(preprocessor)
        self.views = BatchedViews(views, dtype)
        self.preprocessor = preprocessor

    @property
    def mean(self) -> Tensor:
        """The mean of the channels that is subtracted."""
        return self.preprocessor.mean

    @property
    def std(self) -> Tensor:
        """The standard deviation of the channels, the divisor."""
        return self.preprocessor.std

    def forward(self, data: dict, training: bool = False) -> dict:
        """The preprocessed views, or without training the plain images.

        Args:
            data (dict): ``inputs``, images of 8 bits, (N, 3, H, W) or a list
                of (3, H, W), and ``data_samples``, whose ``sample_idx`` have a
                seed.
            training (bool): Whether to make views. Defaults to False.

        Returns:
            dict: As the preprocessor returns it; in training ``inputs`` is a
            list of views.

        Raises:
            TypeError: If an index has no seed.
            ValueError: If the images are views already.
        """
        if not training:
            return self.preprocessor(data, training)
        samples = data.get('data_samples')
        images = self.preprocessor.cast_data(data['inputs'])
        if not isinstance(images, Tensor) and images[0].ndim != 3:
            raise ValueError(
                'BatchAugmentation takes images, got several views of each. '
                'Remove MultiView from the pipeline; BatchAugmentationHook '
                'does so.')
        with torch.autocast(images[0].device.type, enabled=False):
            views = self.views(images, seeds_of(samples))
        return self.preprocessor(dict(inputs=views, data_samples=samples),
                                 training)


def seeds_of(samples: Optional[Sequence]) -> List[int]:
    """The seeds that came with the indices of ``samples``.

    Raises:
        TypeError: If there are none.
    """
    seeds: list = [
        getattr(getattr(sample, 'sample_idx', None), 'seed', None)
        for sample in samples or [None]]
    if None in seeds:
        raise TypeError(
            'BatchAugmentation needs samples with a seed. Use sampler=dict('
            "type='us3l_mm.SeededSampler', shuffle=True) in the dataloader, "
            "and keep 'sample_idx' among the meta_keys of PackInputs.")
    return seeds
