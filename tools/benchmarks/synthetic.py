# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Images that take the place of a data set, so that none is needed."""
from pathlib import Path

import cv2
import numpy as np
from mmengine.dataset import Compose
from sklearn.datasets import load_sample_images
from torch.utils.data import Dataset

from us3l_mm.registry import DATASETS

PIECE = 300  # pixels of a photograph, to either side
# Images of which there are so many, and how often they are repeated so that
# an epoch is as long as one of CIFAR-10.
DIFFERENT, LENGTH = 512, 50_000
# Pixels to either side: of CIFAR, and of about as many as ImageNet has in the
# mean, in files.
IN_MEMORY, IN_FILES = 32, 400
ARRAYS = ('CIFAR10', 'CIFAR100')
LOADERS = ('LoadImage', 'LoadImageFromFile')


def write_images(folder, count, size):
    """JPEG files of pieces of photographs, a folder per photograph.

    The two photographs ship inside scikit-learn.
    """
    photographs = load_sample_images().images
    rng = np.random.default_rng(0)
    for index in range(count):
        label = index % len(photographs)
        top, left = (rng.integers(side - PIECE + 1)
                     for side in photographs[label].shape[:2])
        piece = photographs[label][top:top + PIECE, left:left + PIECE]
        piece = cv2.resize(piece, (size, size))
        path = Path(folder, str(label), f'{index:06d}.jpg')
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), cv2.cvtColor(piece, cv2.COLOR_RGB2BGR))


@DATASETS.register_module()
class SyntheticImages(Dataset):
    """The JPEG files of a folder, or random arrays, again and again.

    Args:
        pipeline (list[dict]): The transforms of a sample.
        image_size (int): Height and width of random arrays, in pixels.
        folder (str, optional): Where JPEG files are. Defaults to None:
            arrays (H, W, 3) of uint8, as MMPretrain's CIFAR-10 has them.
    """

    metainfo = {}

    def __init__(self, pipeline, image_size, folder=None):
        self.pipeline = Compose(pipeline)
        if folder is None:
            shape = DIFFERENT, image_size, image_size, 3
            images = np.random.default_rng(0).integers(256, size=shape,
                                                       dtype=np.uint8)
            self.samples = [dict(img=image) for image in images]
        else:
            self.samples = [
                dict(img_path=str(path))
                for path in sorted(Path(folder).rglob('*.jpg'))]

    def __len__(self):
        return LENGTH

    def __getitem__(self, index):
        sample = self.samples[index % len(self.samples)]
        # The index has the seed of the augmentation.
        return self.pipeline(dict(sample, gt_label=0, sample_idx=index))


def replace_images(dataset, image_size, folder):
    """Let the config ``dataset`` have synthetic images in its pipeline.

    Args:
        dataset (dict): Config of a data set, changed in place.
        image_size (int): Height and width in pixels; 0 for those of CIFAR, or
            about those of ImageNet.
        folder (Path): Where files are written, and found by whoever comes
            later.

    Raises:
        ValueError: If the data set has no images that could be replaced.
    """
    names = [step['type'].split('.')[-1] for step in dataset.pipeline]
    in_files = any(name in LOADERS for name in names)
    if not in_files and dataset.type not in ARRAYS:
        raise ValueError(
            '--synthetic takes the place of images in files (pipelines with '
            f'{" or ".join(LOADERS)}) and of {" and ".join(ARRAYS)}, got '
            f'train_dataloader.dataset.type={dataset.type!r}. Leave it out.')
    size = image_size or (IN_FILES if in_files else IN_MEMORY)
    images = dict(type='us3l_mm.SyntheticImages', image_size=size,
                  pipeline=dataset.pipeline)
    if in_files:
        images['folder'] = str(folder)
        if not folder.exists():
            folder.mkdir()
            write_images(folder, DIFFERENT, size)
    dataset.clear()
    dataset.update(images)
