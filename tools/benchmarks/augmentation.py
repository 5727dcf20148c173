# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""CPU time of the views of an image: image by image, or a batch at a time.

Both ways begin with decoded images and end with the preprocessed views of a
batch. One is the pipeline of the config without loading, collation, and the
preprocessor of the model; the other is what BatchAugmentationHook makes of
them. They are timed in turn, in one thread, in seconds of the CPU, so other
programs matter little; the ratio is the median of the ratios of the rounds.
"""
import argparse
import json
from pathlib import Path
from statistics import median
from time import process_time

import mmcv
import numpy as np
import torch
from arguments import add_shared, at_least
from mmcv.transforms import Compose
from mmengine.dataset import default_collate
from mmengine.registry import DefaultScope
from mmpretrain.datasets.transforms import (MultiView, PackInputs,
                                            RandomResizedCrop)
from rich.console import Console
from rich.progress import track
from rich.table import Table

from us3l_mm.apis.command_line import errors_as_sentences
from us3l_mm.apis.launching import load_config
from us3l_mm.datasets import SeedAugmentation
from us3l_mm.datasets.seeded_augmentation import SampleIndex
from us3l_mm.engine.hooks.batch_augmentation_hook import plain
from us3l_mm.models import BatchAugmentation
from us3l_mm.registry import MODELS

CONFIGS = Path(__file__).parents[2] / 'configs'
# Recipes for 32, 96 and 224 pixels
RECIPES = [
    CONFIGS / name
    for name in ('us3l/us3l_resnet18_4xb128-coslr-400e_cifar10.py',
                 'gated/gated_resnet18_2xb256-coslr-500e_stl10.py',
                 'us3l/us3l_resnet18_8xb128-coslr-100e_in1k.py')]
KINDS = (MultiView, PackInputs, SeedAugmentation)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        '--configs', nargs='+', default=[*map(str, RECIPES)],
        help='configs of a pre-training, whose views are made\n(default: '
        'recipes for CIFAR-10, STL-10 and ImageNet)')
    parser.add_argument('--batch-size', type=at_least(1), default=128,
                        help='images of a batch (default: 128)')
    parser.add_argument(
        '--source-size', type=at_least(1), metavar='PIXELS',
        help='height and width of an image (default: those of '
        'a crop)')
    add_shared(parser, rounds=7, default_device='cpu')
    return parser.parse_args(argv)


def photographs(count, size):
    """Images (size, size, 3) of 8 bits, of soft and hard edges."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    images = [mmcv.imresize(image, (size, size)) for image in coarse]
    for image in images:
        image[:size // 2, :size // 2] = 255 - image[:size // 2, :size // 2]
    return images


def two_ways(config, device):
    """For each way a pipeline and a preprocessor, and the size of a crop."""
    transforms = [
        each for each in Compose(
            config.train_dataloader.dataset.pipeline).transforms
        if type(each) in KINDS]
    kinds = [type(each) for each in transforms]
    if MultiView not in kinds or 'data_preprocessor' not in config:
        raise ValueError(
            f'{config.filename} makes no views: it has no MultiView in '
            'train_dataloader.dataset.pipeline, or no data_preprocessor. '
            'Name the config of a pre-training.')
    multi_view = transforms[kinds.index(MultiView)]
    crop = multi_view.transforms[0].transforms[0]
    if type(crop) is not RandomResizedCrop:
        raise ValueError(
            f'{config.filename}: photographs are timed, whose views begin '
            'with RandomResizedCrop; this view begins with '
            f'{type(crop).__name__}.')
    preprocessor = MODELS.build(config.data_preprocessor).to(device)
    ways = dict(
        image=(Compose(transforms), preprocessor), batch=(Compose(
            plain(transforms)), BatchAugmentation(multi_view, preprocessor)))
    return ways, crop.scale[0]


def seconds(way, images, first_seed):
    """Seconds of the CPU for the views of all images."""
    pipeline, preprocessor = way
    begin = process_time()
    samples = [
        pipeline(
            dict(img=image, sample_idx=SampleIndex(index, first_seed + index)))
        for index, image in enumerate(images)]
    preprocessor(default_collate(samples), training=True)
    return process_time() - begin


def measure(path, args):
    """A row of figures for one config."""
    config = load_config(path)
    ways, size = two_ways(config, args.device)
    images = photographs(args.batch_size, args.source_size or size)
    times = {name: [] for name in ways}
    for index in track(range(args.rounds + 1), f'{size} pixels'):
        for name, way in ways.items():
            times[name].append(seconds(way, images, index * args.batch_size))
    for each in times.values():
        del each[0]  # the warm-up
    rate = {
        name: args.batch_size / median(each) for name, each in times.items()}
    return dict(
        config=Path(path).name, image_size=size, image_per_s=rate['image'],
        batch_per_s=rate['batch'], ratio=median(
            one / other for one, other in zip(*times.values())))


def main(argv=None):
    args = parse_args(argv)
    torch.set_num_threads(1)
    with errors_as_sentences('augmentation', args.debug):
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            rows = [measure(path, args) for path in args.configs]
    table = Table(title='images whose views one core makes in a second of '
                  f'CPU time, batches of {args.batch_size}')
    for column in ('config', 'pixels', 'one by one', 'in batches', 'ratio'):
        table.add_column(column,
                         justify='left' if column == 'config' else 'right')
    for row in rows:
        table.add_row(row['config'], str(row['image_size']),
                      f'{row["image_per_s"]:.0f}', f'{row["batch_per_s"]:.0f}',
                      f'{row["ratio"]:.2f}')
    Console().print(table)
    if args.json:
        Path(args.json).write_text(
            json.dumps(dict(rows=rows, settings=vars(args)), indent=2))


if __name__ == '__main__':
    main()
