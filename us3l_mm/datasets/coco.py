# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""MMDetection's ``CocoDataset`` on digit scenes and on folders of one's own.

These are functions in the registry: they build the stock class and need
MMDetection only when they are called.
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
    """Scenes of handwritten digits, rendered where they are not there yet.

    Args:
        split (str): 'train' or 'val'; no digit is in both.
        data_root (str): The folder, in COCO's layout. Defaults to
            'data/digit_scenes'.
        scenes (dict, optional): Arguments of
            :class:`~us3l_mm.datasets.digit_scenes.SceneSettings`, for both
            splits together.
        **kwargs: Those of ``mmdet.CocoDataset`` (``pipeline``, ...).

    Raises:
        ImportError: where MMDetection is needed and cannot be used.
        ValueError: if ``data_root`` holds something else.
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
    """Any data set in COCO format; its classes are those of its file.

    The stock class takes the names of classes from the config, and drops the
    annotations of all others without a word.

    Args:
        ann_file (str): The annotations, relative to ``data_root``.
        data_root (str): Defaults to the current folder.
        same_classes_as (str, optional): Another annotation file, relative to
            ``data_root``, that must list the same categories in the same
            order, since a label is a place in that order.
        **kwargs: Those of ``mmdet.CocoDataset`` (``data_prefix``, ...).

    Raises:
        ImportError, FileNotFoundError, ValueError: with what is wrong and
            what to do.
    """
    check_detection()
    classes = class_names(osp.join(data_root, ann_file))
    if same_classes_as is not None:
        others = class_names(osp.join(data_root, same_classes_as))
        if others != classes:
            raise ValueError(
                f'{same_classes_as} and {ann_file} in {data_root} list other '
                f'categories, or in another order: {others} and {classes}. '
                'Write the same "categories" into both files.')
    return _coco_dataset(tuple(classes), data_root=data_root,
                         ann_file=ann_file, **kwargs)


def class_names(path: str) -> List[str]:
    """The categories of an annotation file, in its order.

    Raises:
        FileNotFoundError, ValueError: with what is wrong and what to do.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(
            f'{path} is not there: the annotations of a data set in COCO '
            'format. Set the data_root that holds it, or ann_file.')
    categories = read_categories(path)
    if not categories:
        raise ValueError(f'{path} lists no "categories": it is no annotation '
                         'file in COCO format.')
    names = [category['name'] for category in categories]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f'{path} has several categories called {twice}; '
                         'give each a name of its own.')
    return names


def _coco_dataset(classes, **kwargs) -> Dataset:
    return DATASETS.build(
        dict(type='mmdet.CocoDataset', metainfo=dict(classes=classes),
             **kwargs))
