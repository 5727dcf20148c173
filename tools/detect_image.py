# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Detect objects in image files: boxes in a table, pictures in a folder."""
import argparse
import os
import os.path as osp
import sys

import mmcv
import torch
from rich.console import Console
from rich.table import Table

from us3l_mm.apis.command_line import (OptionsAction, add_common_flags,
                                       errors_as_sentences, subnet_argument)
from us3l_mm.apis.inference import check_runs, detect, draw, load_detector
from us3l_mm.apis.launching import load_config
from us3l_mm.evaluation.latency import check_device
from us3l_mm.fileio import check_writable


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Example: python tools/detect_image.py configs/us3l/detection/'
        'mask-rcnn_r50-any-width_fpn_ms-1x_coco.py epoch_12.pth photo.jpg '
        '--out detections')
    parser.add_argument('config', help='config that the detector was trained '
                        'with')
    parser.add_argument('checkpoint', help='file that the training wrote')
    parser.add_argument('images', nargs='+', metavar='image',
                        help='image files')
    parser.add_argument(
        '--out', '--out-dir', dest='out_dir', metavar='DIR',
        help='folder for the pictures; they are '
        'named like the images')
    parser.add_argument('--score-thr', type=float, default=0.3, metavar='S',
                        help='leave out what has a lower score; default: 0.3')
    parser.add_argument(
        '--width', type=subnet_argument, metavar='W',
        help='sub-network of a detector that has several, such as 0.5; '
        'default: the full one')
    parser.add_argument('--device',
                        default='cuda' if torch.cuda.is_available() else 'cpu',
                        help='default: cuda where there is one, else cpu')
    parser.add_argument(
        '--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE',
        help='changes to the config, the '
        'same as in the training')
    add_common_flags(parser)
    args = parser.parse_args(argv)
    if not 0 <= args.score_thr <= 1:
        parser.error(f'--score-thr is between 0 and 1, got {args.score_thr}.')
    return args


def read_images(paths: list) -> list:
    """The images, (H, W, 3), BGR."""
    images = []
    for path in paths:
        if not osp.isfile(path):
            raise FileNotFoundError(f'There is no image {path}.')
        image = mmcv.imread(path) if osp.getsize(path) else None
        if image is None:
            raise ValueError(f'{path} cannot be read as an image. Give files '
                             'such as .jpg and .png.')
        images.append(image)
    return images


def picture_names(paths: list, folder: str) -> list:
    """The file for the picture of each image, all different."""
    names, taken = [], set()
    for path in paths:
        stem, ending = osp.splitext(osp.basename(path))
        name, number = stem + ending, 1
        while name in taken:
            number += 1
            name = f'{stem}_{number}{ending}'
        taken.add(name)
        names.append(osp.join(folder, name))
    return names


def table_of(path: str, sample, classes: tuple, threshold: float) -> Table:
    """The boxes of an image in pixels, best first."""
    found = sample.pred_instances.cpu()
    found = found[found.scores >= threshold]
    found = found[found.scores.argsort(descending=True)]
    table = Table(title=f'{path}: {len(found)} found with a score of at least '
                  f'{threshold:g}')
    with_masks = 'masks' in found
    for title in ('class', 'score', 'left', 'top', 'right', 'bottom',
                  *(['mask (px)'] if with_masks else [])):
        table.add_column(title,
                         justify='left' if title == 'class' else 'right')
    for index in range(len(found)):
        table.add_row(
            classes[int(found.labels[index])],
            f'{found.scores[index].item():.3f}',
            *(f'{value:.1f}' for value in found.bboxes[index].tolist()),
            *([str(int(found.masks[index].sum()))] if with_masks else []))
    return table


def main(argv=None):
    args = parse_args(argv)
    with errors_as_sentences('detect_image', args.debug):
        images = read_images(args.images)
        pictures = [None] * len(images)
        if args.out_dir:
            pictures = picture_names(args.images, args.out_dir)
            for path, picture in zip(args.images, pictures):
                check_writable(picture, path)
        check_device(args.device)
        config = load_config(args.config, args.cfg_options)
        detector = load_detector(config, args.checkpoint, args.device,
                                 args.trust_pickle)
        if args.width is not None:
            check_runs(detector, args.width)
        samples = detect(detector, images, args.width)
    if args.out_dir:
        os.makedirs(args.out_dir, exist_ok=True)
    # All of a row, also where the output is a file.
    console = Console(width=None if sys.stdout.isatty() else 120)
    for path, image, sample, picture in zip(args.images, images, samples,
                                            pictures):
        console.print(
            table_of(path, sample, detector.dataset_meta['classes'],
                     args.score_thr))
        if picture:
            draw(detector, image[..., ::-1].copy(), sample, picture,
                 args.score_thr)
            print(f'drawn into {picture}')


if __name__ == '__main__':
    main()
