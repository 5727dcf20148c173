# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Does a detection data set hold what the model is going to learn?

MMDetection drops, without a word, the annotations of classes it was not told
of, and numbers the classes as the file does, whatever order it was told.
"""
import json
import mmap
import os.path as osp
import re
from typing import Iterator, List, Tuple

from mmengine.fileio import get_local_path
from torch import nn
from torch.utils.data import Dataset

SHOWN = 10


def check_detection_data(dataset: Dataset, model: nn.Module,
                         option: str) -> None:
    """Compare ``dataset`` with its annotation file, its images and ``model``.

    Data sets that are not in COCO format are left alone; inside of wrappers
    (``RepeatDataset``, ``ConcatDataset``, ...) each is looked at.

    Args:
        dataset (Dataset): Built, with its annotations read.
        model (nn.Module): The detector.
        option (str): Where the config has it, such as
            'train_dataloader.dataset'.

    Raises:
        ValueError: with what differs, and the options that repair it.
    """
    for each in coco_datasets(dataset):
        check_classes(each, option)
        check_heads(model, each.metainfo['classes'])
        instances, masks = check_images(each, option)
        if not each.test_mode:
            check_targets(each, instances, masks, needs_masks(model))


def coco_datasets(dataset: Dataset) -> Iterator[Dataset]:
    """Those in COCO format inside of ``dataset``."""
    inner = getattr(dataset, 'datasets', None)
    if inner is None and hasattr(dataset, 'dataset'):
        inner = [dataset.dataset]
    if inner is not None:
        for each in inner:
            yield from coco_datasets(each)
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
    except (ValueError, TypeError, KeyError):  # a name inside of a text
        with open(path) as file:
            categories = json.load(file).get('categories', [])
    return categories


def check_classes(dataset: Dataset, option: str) -> None:
    """Compare the classes that a data set was told with those of its file."""
    classes = dataset.metainfo['classes']
    if isinstance(classes, str):
        raise ValueError(
            f'{option}.metainfo.classes={classes!r} is a text; write '
            f'({classes!r},), with the comma, for a single class.')
    with get_local_path(dataset.ann_file,
                        backend_args=dataset.backend_args) as path:
        names = [category['name'] for category in read_categories(path)]
    told = f'{option}.metainfo.classes, {_some(classes)}'
    repair = ('Set, for every data loader, '
              f'{option}.metainfo.classes={tuple(names)}, and num_classes='
              f'{len(names)} in the heads of the model.')
    absent = [name for name in classes if name not in names]
    if absent:
        raise ValueError(
            f'{dataset.ann_file} has the classes {_some(names)}; '
            f'{len(absent)} of {told}, are not among them: {_some(absent)}. '
            f'Annotations of all others would be dropped. {repair}')
    if len(dataset.cat_ids) != len(classes):
        raise ValueError(
            f'{dataset.ann_file} has a class twice, or {told}, do: '
            f'{_some(names)}.')
    order = [name for name in names if name in classes]
    if order != list(classes):
        raise ValueError(
            f'{dataset.ann_file} has the classes in another order, '
            f'{_some(order)}, than {told}. MMDetection numbers them as the '
            'file does, so predictions would get the wrong names: set '
            f'{option}.metainfo.classes={tuple(order)}.')


def check_heads(model: nn.Module, classes: List[str]) -> None:
    """Compare the classes of a data set with those of the model's heads."""
    heads = {
        name: module.num_classes
        for name, module in model.named_modules()
        if re.search(r'(^|\.)(bbox|mask)_head(\.\d+)?$', name)
        and isinstance(getattr(module, 'num_classes', None), int)
    }
    wrong = {
        name: number
        for name, number in heads.items() if number != len(classes)
    }
    if wrong:
        raise ValueError(
            f'The data set has {len(classes)} classes, {_some(classes)}, the '
            'model other numbers: ' +
            ', '.join(f'{name}.num_classes={number}'
                      for name, number in wrong.items()) + '. Set ' +
            ' '.join(f'model.{name}.num_classes={len(classes)}'
                     for name in wrong) + '.')


def needs_masks(model: nn.Module) -> bool:
    """Whether a detector learns masks."""
    return bool(getattr(getattr(model, 'roi_head', None), 'with_mask', False))


def check_images(dataset: Dataset, option: str) -> Tuple[int, int]:
    """Refuse missing and empty image files; count instances and masks."""
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
        problem = [
            f'{len(paths)} {what}, such as {paths[0]}'
            for paths, what in ((missing, 'are not there'),
                                (empty, 'have zero bytes')) if paths
        ]
        raise ValueError(
            f'Of the {len(dataset)} images of {dataset.ann_file} ' +
            ', and '.join(problem) + f'. Is {option}.data_prefix.img right? '
            'Images that cannot be had must leave the annotation file.')
    return instances, masks


def check_targets(dataset: Dataset, instances: int, masks: int,
                  with_masks: bool) -> None:
    """Refuse a training set without anything to learn."""
    if not instances:
        raise ValueError(
            f'No image of {dataset.ann_file} has an instance that can be '
            'learned: boxes need a class, an area, and a side of at least one '
            'pixel inside of the image.')
    if with_masks and not masks:
        raise ValueError(
            f'None of the {instances} instances of {dataset.ann_file} has a '
            'segmentation, which a mask head needs: use a detector without '
            'one, such as Faster R-CNN.')


def _some(names) -> str:
    more = len(names) - SHOWN
    return repr(tuple(
        names[:SHOWN])) + (f' and {more} more' if more > 0 else '')
