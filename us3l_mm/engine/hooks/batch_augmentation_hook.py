# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from functools import partial
from typing import Any, Callable, List

from mmcv.transforms import LoadImageFromFile
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.datasets.transforms import MultiView, PackInputs
from mmpretrain.utils import get_ori_model

from us3l_mm.datasets import (LoadImage, SeedAugmentation, SeededSampler,
                              SwapRedBlue)
from us3l_mm.models.augmentation import BatchAugmentation
from us3l_mm.registry import HOOKS

# Transforms that draw no random numbers, which need no seed.
FIXED = (LoadImage, LoadImageFromFile, PackInputs, SwapRedBlue)


@HOOKS.register_module()
class BatchAugmentationHook(Hook):
    """Augment whole batches on the device of the model.

    Before training, ``MultiView`` is taken out of the training pipeline, and
    its transforms, as the config has them, become a
    :class:`~us3l_mm.models.augmentation.BatchAugmentation` in front of the
    preprocessor of the model. Workers then send plain images. Everything else
    that reads the config, such as calibration on augmented images, goes on
    with the transforms.

    Args:
        dtype (str): The type of the images between the operations: 'float32',
            'float16' or 'bfloat16'. Defaults to 'float32'.

    Raises:
        ValueError: If the pipeline has no ``MultiView`` directly before
            ``PackInputs``, a transform in it has no batched form, or the
            sampler sends no seeds.

    Example:
        ``tools/train.py CONFIG --cfg-options
        default_hooks.augmentation.type=us3l_mm.BatchAugmentationHook``;
        where a config has it, ``default_hooks.augmentation=None`` augments
        each image on its own.
    """

    # After the checks of PreflightHook
    priority = 'HIGH'

    def __init__(self, dtype: str = 'float32'):
        self.dtype = dtype

    def before_train(self, runner: Runner) -> None:
        """Change pipeline and preprocessor of the run."""
        model = get_ori_model(runner.model)
        if isinstance(model.data_preprocessor, BatchAugmentation):
            return  # by the config, or by an earlier training
        loader = runner.train_dataloader
        if not isinstance(loader.sampler, SeededSampler):
            raise ValueError(
                'BatchAugmentationHook draws from the seed of each sample, '
                f'which {type(loader.sampler).__name__} does not send. Set '
                "train_dataloader.sampler.type='us3l_mm.SeededSampler'.")
        transforms = getattr(getattr(loader.dataset, 'pipeline', None),
                             'transforms', [])
        kinds = [type(each) for each in transforms]
        if kinds[-2:] != [MultiView, PackInputs] or MultiView in kinds[:-2]:
            raise ValueError(
                'BatchAugmentationHook takes over a training pipeline that '
                'ends with MultiView and PackInputs, got '
                f'{[kind.__name__ for kind in kinds]} of '
                f'{type(loader.dataset).__name__}. Change '
                'train_dataloader.dataset.pipeline, or augment each image on '
                'its own: default_hooks.augmentation=None.')
        model.data_preprocessor = BatchAugmentation(
            transforms[-2], model.data_preprocessor, self.dtype)
        transforms[:] = plain(transforms)
        loader.collate_fn = partial(collate_sizes, loader.collate_fn)


def plain(transforms: List[Callable]) -> List[Callable]:
    """``transforms`` without ``MultiView``, and without a seed for nothing."""
    rest = [each for each in transforms if type(each) is not MultiView]
    if all(type(each) in (*FIXED, SeedAugmentation) for each in rest):
        rest = [each for each in rest if type(each) is not SeedAugmentation]
    return rest


def collate_sizes(collate: Callable[[list], Any], samples: List[dict]) -> Any:
    """Collate samples whose images may differ in size.

    ``inputs`` is then a list of images, and not a tensor of all of them.
    """
    if len({sample['inputs'].shape for sample in samples}) == 1:
        return collate(samples)
    rest = collate([{**sample, 'inputs': 0} for sample in samples])
    return {**rest, 'inputs': [sample['inputs'] for sample in samples]}
