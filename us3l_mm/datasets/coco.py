# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""MMDetection's ``CocoDataset`` for digit scenes and for your own images.

The registry holds functions that build the stock class, so that MMDetection is
needed only when one of them is called.
"""
import os.path as osp
from typing import List, Optional

from torch.utils.data import Dataset

from us3l_mm.registry import DATASETS
from us3l_mm.stack import check_detection
from .coco_checks import read_categories
from .digit_scenes import CLASSES, SceneSettings, write_digit_scenes


@DATASETS.register_module(name='DigitScenes')
def digit_scenes(split: str, data_root: str = 'data/digit_scenes',
                 scenes: Optional[dict] = None, **kwargs) -> Dataset:
    """Build a data set of digit scenes, which are rendered if necessary.

    Args:
        split (str): 'train' or 'val'. The splits share no digit.
        data_root (str): The folder, in COCO's layout. Defaults to
            'data/digit_scenes'.
        scenes (dict, optional): Arguments of
            :class:`~us3l_mm.datasets.digit_scenes.SceneSettings`, the same
            for both splits. Defaults to None for its defaults.
        **kwargs: Other arguments of ``mmdet.CocoDataset``.

    Raises:
        ImportError: If MMDetection cannot be used.
        ValueError: If ``data_root`` holds something else.
    """
    if split not in ('train', 'val'):
        raise ValueError(f"split is 'train' or 'val', got {split!r}.")
    check_detection()
    write_digit_scenes(data_root, SceneSettings(**(scenes or {})))
    return _coco_dataset(CLASSES, data_root=data_root,
                         ann_file=f'annotations/instances_{split}.json',
                         data_prefix=dict(img=f'{split}/'), **kwargs)


@DATASETS.register_module(name='CocoFolder')
def coco_folder(ann_file: str, data_root: str = '',
                same_classes_as: Optional[str] = None, **kwargs) -> Dataset:
    """Build a data set in COCO format with the classes of its own file.

    The stock class takes the class names from the config and silently drops
    the annotations of other classes.

    Args:
        ann_file (str): The annotations, relative to ``data_root``.
        data_root (str): The folder. Defaults to the current one.
        same_classes_as (str, optional): Another annotation file, relative to
            ``data_root``, that must list the same categories in the same
            order, since a label is a place in that order.
        **kwargs: Other arguments of ``mmdet.CocoDataset``.

    Raises:
        ImportError: If MMDetection cannot be used.
        FileNotFoundError, ValueError: If a file is missing or wrong.
    """
    check_detection()
    classes = class_names(osp.join(data_root, ann_file))
    if same_classes_as is not None:
        others = class_names(osp.join(data_root, same_classes_as))
        if others != classes:
            raise ValueError(
                f'{same_classes_as} and {ann_file} in {data_root} differ in '
                f'categories or in their order: {others} and {classes}. '
                'Write the same "categories" into both files.')
    return _coco_dataset(tuple(classes), data_root=data_root,
                         ann_file=ann_file, **kwargs)


def class_names(path: str) -> List[str]:
    """The names of the categories of an annotation file, in its order.

    Raises:
        FileNotFoundError, ValueError: If the file is missing or wrong.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(
            f'There is no annotation file {path}. Set data_root to the folder '
            'of a data set in COCO format, and ann_file to a file in it.')
    categories = read_categories(path)
    if not categories:
        raise ValueError(f'{path} has no "categories", so it is not an '
                         'annotation file in COCO format.')
    names = [category['name'] for category in categories]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f'{path} has several categories called {twice}. '
                         'Give each of them another name.')
    return names


def _coco_dataset(classes, **kwargs) -> Dataset:
    return DATASETS.build(
        dict(type='mmdet.CocoDataset', metainfo=dict(classes=classes),
             **kwargs))
