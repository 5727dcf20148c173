# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Checks of a detection data set against its model before training.

MMDetection silently drops the annotations of classes that the config does not
name, and numbers the classes in the order of the file.
"""
import json
import mmap
import os.path as osp
import re
from typing import Iterator, List, Sequence

from mmengine.fileio import get_local_path
from torch import nn
from torch.utils.data import Dataset

SHOWN = 10


def check_detection_data(dataset: Dataset, model: nn.Module,
                         option: str) -> None:
    """Compare ``dataset`` with its annotation file, its images and ``model``.

    Data sets inside wrappers (``RepeatDataset``, ``ConcatDataset``) are
    checked as well; those that are not in COCO format are not.

    Args:
        dataset (Dataset): The data set, with its annotations read.
        model (nn.Module): The detector.
        option (str): The key of the data set in the config, such as
            'train_dataloader.dataset'.

    Raises:
        ValueError: If they disagree; the message names the options to set.
    """
    for each in _coco_datasets(dataset):
        _check_classes(each, option)
        _check_heads(model, each.metainfo['classes'])
        _check_samples(each, model, option)


def _coco_datasets(dataset) -> Iterator:
    inner = getattr(dataset, 'datasets', None)
    if inner is None and hasattr(dataset, 'dataset'):
        inner = [dataset.dataset]
    if inner is not None:
        for each in inner:
            yield from _coco_datasets(each)
    elif hasattr(dataset, 'cat_ids') and 'classes' in dataset.metainfo:
        yield dataset


def read_categories(path: str) -> List[dict]:
    """The ``categories`` of a COCO file, without reading the rest of it."""
    with open(path, 'rb') as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            start = text.rfind(b'"categories"')
            found = re.compile(rb'\s*:\s*').match(text, start + 12)
            tail = text[found.end():] if start >= 0 and found else b''
    try:
        categories = json.JSONDecoder().raw_decode(tail.decode())[0]
        [category['name'] for category in categories]
    except (ValueError, TypeError, KeyError):  # the word in another place
        with open(path) as file:
            content = json.load(file)
        categories = isinstance(content, dict) and content.get('categories')
    return categories or []


def _check_classes(dataset, option: str) -> None:
    """Compare the classes of the config with those of the file."""
    classes = dataset.metainfo['classes']
    if isinstance(classes, str):
        raise ValueError(
            f'{option}.metainfo.classes={classes!r} is a string. For a single '
            f'class write ({classes!r},), with the comma.')
    with get_local_path(dataset.ann_file,
                        backend_args=dataset.backend_args) as path:
        names = [category['name'] for category in read_categories(path)]
    given = f'{option}.metainfo.classes, {_some(classes)}'
    absent = [name for name in classes if name not in names]
    if absent:
        raise ValueError(
            f'{dataset.ann_file} has the classes {_some(names)}; '
            f'{len(absent)} of {given}, are not among them: {_some(absent)}. '
            'Annotations of other classes would be dropped. For every data '
            f'loader set {option}.metainfo.classes={tuple(names)}, and '
            f'num_classes={len(names)} in the heads of the model.')
    if len(dataset.cat_ids) != len(classes):
        raise ValueError(f'{dataset.ann_file}, or {given}, has a class twice: '
                         f'{_some(names)}.')
    order = [name for name in names if name in classes]
    if order != list(classes):
        raise ValueError(
            f'{dataset.ann_file} has the classes in another order, '
            f'{_some(order)}, than {given}. MMDetection numbers them as the '
            'file does, so predictions would get the wrong names: set '
            f'{option}.metainfo.classes={tuple(order)}.')


def _check_heads(model: nn.Module, classes: List[str]) -> None:
    """Compare the number of classes with those of the model's heads."""
    wrong = {
        name: module.num_classes for name, module in model.named_modules()
        if re.search(r'(^|\.)(bbox|mask)_head(\.\d+)?$', name)
        and getattr(module, 'num_classes', None) not in (None, len(classes))}
    if wrong:
        found = ', '.join(f'{n}.num_classes={k}' for n, k in wrong.items())
        repair = ' '.join(f'model.{name}.num_classes={len(classes)}'
                          for name in wrong)
        raise ValueError(
            f'The data set has {len(classes)} classes, {_some(classes)}, and '
            f'the model has {found}. Set {repair}.')


def _check_samples(dataset, model: nn.Module, option: str) -> None:
    """Refuse missing and empty images, and training without targets."""
    missing, empty, instances, masks = [], [], 0, 0
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        instances += len(info['instances'])
        masks += sum('mask' in instance for instance in info['instances'])
        path = info['img_path']
        if '://' in path:
            continue
        if not osp.isfile(path):
            missing.append(path)
        elif osp.getsize(path) == 0:
            empty.append(path)
    if missing or empty:
        problem = ', and '.join(f'{len(paths)} {what}, such as {paths[0]}'
                                for paths, what in ((missing, 'do not exist'),
                                                    (empty, 'are empty'))
                                if paths)
        raise ValueError(
            f'Of the {len(dataset)} images of {dataset.ann_file} {problem}. '
            f'Is {option}.data_prefix.img right? Remove images that do not '
            'exist from the annotation file.')
    if dataset.test_mode:
        return
    if not instances:
        raise ValueError(
            f'No image of {dataset.ann_file} has an instance that can be '
            'learned: boxes need a class, an area, and a side of at least one '
            'pixel inside of the image.')
    if not masks and getattr(getattr(model, 'roi_head', None), 'with_mask',
                             False):
        raise ValueError(
            f'None of the {instances} instances of {dataset.ann_file} has a '
            'segmentation, which a mask head needs: use a detector without '
            'one, such as Faster R-CNN.')


def _some(names: Sequence[str]) -> str:
    more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
    return f'{tuple(names[:SHOWN])}{more}'
