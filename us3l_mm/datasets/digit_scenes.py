# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Scenes of several handwritten digits, and whose pixels are whose."""
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
# The names that COCO gives the halves, and the digits that each is made of.
SPLITS = {'train': 'train', 'val': 'test'}
# Of the brightest pixel of a digit: what is fainter is not painted.
FAINTEST = 0.25
# Share of its pixels that a digit keeps, whatever is painted over it.
LEAST_VISIBLE = 0.7


@dataclass(frozen=True)
class SceneSettings:
    """What scenes look like; with these, they are always the same.

    Attributes:
        num_train, num_val (int): How many scenes there are.
        image_size (int): Height and width of a scene in pixels.
        num_digits (tuple[int, int]): Fewest and most digits to be placed. A
            scene holds fewer where there is no room left.
        digit_size (tuple[float, float]): Smallest and largest height of a
            digit in pixels.
        brightness (tuple[float, float]): Factor of the ink of a digit.
        seed (int): Of everything random.
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
        self.renderer()  # refuses sizes and brightness

    def renderer(self) -> RenderDigit:
        """What puts one digit on an empty scene."""
        return RenderDigit(self.image_size, tuple(self.digit_size),
                           brightness=tuple(self.brightness))


@dataclass(frozen=True)
class Scene:
    """One image.

    Attributes:
        image (np.ndarray): uint8, (size, size), black where no digit is.
        masks (np.ndarray): bool, (digits, size, size): the visible pixels of
            each digit. No two share a pixel; together they are what is not
            black.
        labels (list[int]): Of the digits.
    """

    image: np.ndarray
    masks: np.ndarray
    labels: List[int]


def render_scene(digits: np.ndarray, labels: np.ndarray,
                 settings: SceneSettings, rng: np.random.Generator) -> Scene:
    """Paint some of ``digits`` (N, 8, 8), one over the other.

    A digit is where it has at least a quarter of its strongest ink; nothing
    else of it is painted. One that would leave too little of another is not
    painted at all, so whatever can be seen has a mask.
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
    """All scenes of 'train' or 'val'; no digit is in scenes of both."""
    if split not in SPLITS:
        raise ValueError(f'split is one of {sorted(SPLITS)}, got {split!r}.')
    data = RenderedDigits(SPLITS[split], render=False, pipeline=[])
    samples = [data.get_data_info(i) for i in range(len(data))]
    digits = np.stack([sample['img'] for sample in samples])
    labels = np.array([sample['gt_label'] for sample in samples])
    # A scene is the same however many others there are.
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
        ImportError: if pycocotools, which MMDetection installs, is not there.
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
    """Of the image with this id."""
    return f'{number:06d}.png'


def annotation_file(folder: str, split: str) -> str:
    """Where COCO's layout has the annotations of a split."""
    return osp.join(folder, 'annotations', f'instances_{split}.json')


def write_digit_scenes(folder: str, settings: SceneSettings) -> str:
    """Make sure that ``folder`` holds these scenes, in COCO's layout.

    ``annotations/instances_{train,val}.json`` beside the images in ``train/``
    and ``val/``. They are rendered aside and put in place by one rename, so
    several processes may do this at once: the first one's scenes stay, and
    any other's would be the same.

    Returns:
        str: ``folder``.

    Raises:
        ValueError: if something else is there.
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
                if not osp.exists(folder):  # not a matter of who was first
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
    """Raise ValueError unless the scenes in ``folder`` are those."""
    wanted = json.loads(json.dumps(asdict(settings)))  # tuples are lists
    try:
        with open(annotation_file(folder, 'train')) as file:
            found = json.load(file)['info']['settings']
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f'{folder} exists and holds no digit scenes. Give '
                         'another data_root, or remove it.') from None
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ValueError(
                f'The scenes in {folder} were rendered with {key}='
                f'{found.get(key)}, wanted are {key}={value}. Remove the '
                'folder, or give another data_root.')
