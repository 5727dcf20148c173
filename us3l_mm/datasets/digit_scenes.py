# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Scenes of several handwritten digits, with exact instance masks."""
import json
import os
import os.path as osp
from dataclasses import asdict, dataclass
from tempfile import TemporaryDirectory
from typing import List, Tuple

import cv2
import numpy as np

from .digits import RenderDigit, RenderedDigits

CLASSES = RenderedDigits.METAINFO['classes']
# COCO's name of each split, and the split of the digits in it.
SPLITS = {'train': 'train', 'val': 'test'}
# Pixels below this share of the brightest one of a digit are not painted.
FAINTEST = 0.25
# Share of the pixels of each digit that stay visible.
LEAST_VISIBLE = 0.7


@dataclass(frozen=True)
class SceneSettings:
    """The appearance of scenes; equal settings give equal scenes.

    Attributes:
        num_train, num_val (int): Number of scenes of each split.
        image_size (int): Height and width of a scene in pixels.
        num_digits (tuple[int, int]): Smallest and largest number of digits.
            A digit for which there is no room is left out.
        digit_size (tuple[float, float]): Smallest and largest height of a
            digit in pixels.
        brightness (tuple[float, float]): Smallest and largest factor of the
            brightness of a digit.
        seed (int): The random seed.
    """

    num_train: int = 24
    num_val: int = 200
    image_size: int = 96
    num_digits: Tuple[int, int] = (4, 8)
    digit_size: Tuple[float, float] = (14, 28)
    brightness: Tuple[float, float] = (0.4, 1.0)
    seed: int = 0

    def __post_init__(self):
        for name in ('num_train', 'num_val'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} is at least 1, got '
                                 f'{getattr(self, name)}.')
        low, high = self.num_digits
        if not 1 <= low <= high:
            raise ValueError('num_digits is (fewest, most), at least 1, got '
                             f'{self.num_digits}.')
        self.renderer()  # checks sizes and brightness

    def renderer(self) -> RenderDigit:
        """The transform that draws one digit on an empty scene."""
        return RenderDigit(self.image_size, tuple(self.digit_size),
                           brightness=tuple(self.brightness))


@dataclass(frozen=True)
class Scene:
    """One image and its instances.

    Attributes:
        image (np.ndarray): uint8, (size, size), black where no digit is.
        masks (np.ndarray): bool, (digits, size, size): the visible pixels of
            each digit. They do not overlap, and they cover all pixels that
            are not black.
        labels (list[int]): The label of each digit.
    """

    image: np.ndarray
    masks: np.ndarray
    labels: List[int]


def render_scene(digits: np.ndarray, labels: np.ndarray,
                 settings: SceneSettings, rng: np.random.Generator) -> Scene:
    """Paint some of ``digits``, uint8 (N, 8, 8), over one another.

    Of a digit, only pixels with at least a quarter of its largest brightness
    are painted. A digit that would hide too much of another one is left out.
    Every visible pixel therefore belongs to a mask.
    """
    renderer = settings.renderer()
    image = np.zeros((settings.image_size, ) * 2, np.uint8)
    masks: List[np.ndarray] = []
    sizes: List[int] = []
    names: List[int] = []
    low, high = settings.num_digits
    for i in rng.integers(len(digits), size=rng.integers(low, high + 1)):
        layer = renderer.render(digits[i], rng)[..., 0]
        ink = layer >= max(FAINTEST * layer.max(), 1)
        kept = [mask & ~ink for mask in masks]
        if any(mask.sum() < LEAST_VISIBLE * size
               for mask, size in zip(kept, sizes)):
            continue
        image[ink] = layer[ink]
        masks, sizes = [*kept, ink], [*sizes, ink.sum()]
        names.append(int(labels[i]))
    return Scene(image, np.stack(masks), names)


def render_scenes(split: str, settings: SceneSettings) -> List[Scene]:
    """All scenes of 'train' or 'val', which share no digit."""
    if split not in SPLITS:
        raise ValueError(f'split is one of {sorted(SPLITS)}, got {split!r}.')
    data = RenderedDigits(SPLITS[split], render=False, pipeline=[])
    samples = [data.get_data_info(i) for i in range(len(data))]
    digits = np.stack([sample['img'] for sample in samples])
    labels = np.array([sample['gt_label'] for sample in samples])
    # A scene does not depend on the number of scenes.
    return [
        render_scene(
            digits, labels, settings,
            np.random.default_rng([
                settings.seed,
                list(SPLITS).index(split), number]))
        for number in range(getattr(settings, f'num_{split}'))]


def bounding_box(mask: np.ndarray) -> List[int]:
    """COCO's [x, y, width, height] of the pixels of ``mask``, (H, W)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [
        int(columns[0]),
        int(rows[0]),
        int(np.ptp(columns)) + 1,
        int(np.ptp(rows)) + 1]


def coco_annotations(scenes: List[Scene], settings: SceneSettings) -> dict:
    """The content of a COCO annotation file; image n is ``n.png``.

    Raises:
        ImportError: If pycocotools, which MMDetection needs, is missing.
    """
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ImportError(
            'Masks in COCO format need pycocotools, which comes with '
            "MMDetection: pip install -e '.[detection]'.") from error
    annotations: List[dict] = []
    for number, scene in enumerate(scenes, 1):
        for mask, label in zip(scene.masks, scene.labels):
            code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
            annotations.append(
                dict(
                    id=len(annotations) + 1, image_id=number,
                    category_id=label + 1, bbox=bounding_box(mask),
                    area=int(mask.sum()), iscrowd=0, segmentation=dict(
                        size=code['size'], counts=code['counts'].decode())))
    size = settings.image_size
    return dict(
        info=dict(description='Scenes of rendered digits, by us3l_mm',
                  settings=asdict(settings)), licenses=[], categories=[
                      dict(id=label + 1, name=name, supercategory='digit')
                      for label, name in enumerate(CLASSES)], images=[
                          dict(id=number, file_name=file_name(number),
                               width=size, height=size)
                          for number in range(1,
                                              len(scenes) + 1)],
        annotations=annotations)


def file_name(number: int) -> str:
    """The name of the image with the id ``number``."""
    return f'{number:06d}.png'


def annotation_file(folder: str, split: str) -> str:
    """The path of the annotations of ``split`` in COCO's layout."""
    return osp.join(folder, 'annotations', f'instances_{split}.json')


def write_digit_scenes(folder: str, settings: SceneSettings) -> str:
    """Write these scenes in COCO's layout, unless ``folder`` has them.

    The annotations are ``annotations/instances_{train,val}.json``, and the
    images are in ``train/`` and ``val/``. Scenes are rendered in a temporary
    folder, which is renamed at the end. Several processes may call this at
    the same time: one of them renames its folder, and all have equal scenes.

    Returns:
        str: ``folder``.

    Raises:
        ValueError: If ``folder`` holds something else.
    """
    if not osp.exists(folder):
        parent = osp.dirname(osp.abspath(folder))
        os.makedirs(parent, exist_ok=True)
        with TemporaryDirectory(dir=parent, prefix='.digit_scenes-') as aside:
            scenes = osp.join(aside, 'scenes')
            _write(scenes, settings)
            try:
                os.rename(scenes, folder)
            except OSError:
                if not osp.exists(folder):  # no other process was first
                    raise
    _check(folder, settings)
    return folder


def _write(folder: str, settings: SceneSettings) -> None:
    os.makedirs(osp.join(folder, 'annotations'))
    for split in SPLITS:
        scenes = render_scenes(split, settings)
        os.mkdir(osp.join(folder, split))
        for number, scene in enumerate(scenes, 1):
            path = osp.join(folder, split, file_name(number))
            if not cv2.imwrite(path, scene.image):
                raise OSError(f'{path} could not be written.')
        with open(annotation_file(folder, split), 'w') as file:
            json.dump(coco_annotations(scenes, settings), file)


def _check(folder: str, settings: SceneSettings) -> None:
    """Raise ValueError unless ``folder`` has scenes of ``settings``."""
    wanted = json.loads(json.dumps(asdict(settings)))  # tuples are lists
    try:
        with open(annotation_file(folder, 'train')) as file:
            found = json.load(file)['info']['settings']
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f'{folder} exists and holds no digit scenes. Set '
                         'another data_root, or remove it.') from None
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ValueError(
                f'The scenes in {folder} were rendered with {key}='
                f'{found.get(key)}, but the config has {key}={value}. Remove '
                'the folder, or set another data_root.')
