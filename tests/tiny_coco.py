# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A data set in COCO format of a few images, written on the fly."""
import json
from pathlib import Path

import cv2
import numpy as np

CLASSES = ('square', 'bar', 'disc')


def write_coco(folder: Path, num_images: int = 4, empty=(), classes=CLASSES,
               sizes=((64, 48), (48, 64))) -> Path:
    """Rectangles on noise, as polygons; ``empty`` images have none.

    Args:
        folder (Path): Gets ``annotations.json`` and ``images/``.
        num_images (int): How many. Defaults to 4.
        empty (tuple): Indices of images without an instance.
        classes (tuple): Names, in the order of the file.
        sizes (tuple): Width and height, taken in turn.
    """
    rng = np.random.default_rng(0)
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(num_images):
        width, height = sizes[index % len(sizes)]
        pixels = rng.integers(0, 60, (height, width, 3), np.uint8)
        for number in range(0 if index in empty else 2):
            x, y = 4 + 22 * number, 6 + index
            w, h = 16 + index, 20
            pixels[y:y + h, x:x + w] = 120 + 60 * number
            annotations.append(
                dict(id=len(annotations) + 1, image_id=index + 1,
                     category_id=10 * ((index + number) % len(classes) + 1),
                     bbox=[x, y, w, h], area=w * h, iscrowd=0, segmentation=[[
                         x, y, x + w, y, x + w, y + h, x, y + h]]))
        cv2.imwrite(str(folder / f'images/{index}.png'), pixels)
        images.append(
            dict(id=index + 1, file_name=f'{index}.png', width=width,
                 height=height))
    (folder / 'annotations.json').write_text(
        json.dumps(
            dict(
                images=images, annotations=annotations, categories=[
                    dict(id=10 * (i + 1), name=name)
                    for i, name in enumerate(classes)])))
    return folder


def coco_options(folder: Path, masks: bool = True) -> list:
    """``--cfg-options`` that train a config of COCO on such a folder."""
    classes = repr(list(CLASSES)).replace(' ', '')
    heads = ['bbox', 'mask'] if masks else ['bbox']
    options = [
        f'model.roi_head.{head}_head.num_classes={len(CLASSES)}'
        for head in heads]
    for kind in ('train', 'val', 'test'):
        data = f'{kind}_dataloader.dataset'
        options += [
            f'{data}.data_root={folder}', f'{data}.ann_file=annotations.json',
            f'{data}.data_prefix.img=images/',
            f'{data}.metainfo.classes={classes}',
            f'{kind}_dataloader.num_workers=0',
            f'{kind}_dataloader.persistent_workers=False']
    for kind in ('val', 'test'):
        options += [
            f'{kind}_evaluator.ann_file={folder}/annotations.json',
            f'{kind}_dataloader.dataset.pipeline.1.scale=(64,64)']
    return options


# Two iterations of two small images, and narrow heads
SMALL = [
    'train_dataloader.dataset.pipeline.2.scales=[(64,64)]',
    'train_cfg.max_epochs=1',
    'default_hooks.logger.interval=1',
    'model.neck.out_channels=32',
    'model.rpn_head.in_channels=32',
    'model.rpn_head.feat_channels=32',
    'model.roi_head.bbox_roi_extractor.out_channels=32',
    'model.roi_head.bbox_head.in_channels=32',
    'model.roi_head.bbox_head.conv_out_channels=32',
    'model.roi_head.bbox_head.fc_out_channels=64',
    'model.train_cfg.rcnn.sampler.num=32',
    'model.test_cfg.rpn.max_per_img=50', ]
# The channels of a slice of width 0.25.
NARROW = [
    'model.backbone.base_channels=16', 'model.backbone.stem_channels=16',
    'model.neck.in_channels=[64,128,256,512]']
SMALL_MASKS = [
    'model.roi_head.mask_roi_extractor.out_channels=32',
    'model.roi_head.mask_head.in_channels=32',
    'model.roi_head.mask_head.conv_out_channels=32']
