# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What one pass over the data for all sub-networks saves.

Calibrating batch norms and extracting features at N widths, each in one pass
over a data set, against doing both for one width after the other. The data are
JPEG files, pieces of the two photographs that ship inside scikit-learn, in a
temporary folder, which the system keeps in memory; they are decoded, resized
and cropped by MMPretrain's pipeline for ImageNet. Both ways are timed in turn,
round by round, in one process, and their features are compared. Figures are
medians over the rounds, and ratios are medians of the ratios of a round.
"""
import argparse
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from rich.console import Console
from rich.progress import track
from rich.table import Table
from arguments import add_shared, at_least
from results import save
from stopwatch import Stopwatch
from synthetic import write_images

from us3l_mm.apis.command_line import errors_as_sentences
from us3l_mm.evaluation import calibrate, default_subnets, extract_features
from us3l_mm.evaluation.data import (build_loader, image_batches,
                                     labelled_batches, shuffled)
from us3l_mm.evaluation.latency import device_name
from us3l_mm.models.layers import slimmable_layers
from us3l_mm.registry import MODELS

ONE_PASS, BY_WIDTH = WAYS = ('one pass', 'by width')
CALIBRATION, FEATURES = PARTS = ('calibration', 'features')
READING = 'reading'


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--depth', type=int, default=18, choices=[
        18, 34, 50, 101, 152], help='depth of the ResNet (default: 18)')
    parser.add_argument('--base-channels', type=at_least(8), default=64,
                        help='channels of its first stage (default: 64)')
    parser.add_argument('--num-widths', type=at_least(1), default=7,
                        help='evenly from 0.25 to 1 (default: 7)')
    parser.add_argument('--num-images', type=at_least(2), default=512,
                        help='images in the data set (default: 512)')
    parser.add_argument(
        '--image-size', type=at_least(32), default=224,
        help='height and width in pixels of what the network '
        'sees;\nthe files are twice as large (default: 224)')
    parser.add_argument('--batch-size', type=at_least(2), default=64,
                        help='default: 64')
    parser.add_argument(
        '--num-workers', type=at_least(0), default=0,
        help='processes that load images (default: 0, the '
        'loading waits for the network)')
    add_shared(parser, rounds=3)
    return parser.parse_args(argv)


def make_loader(folder, args):
    """The images of ``folder``, resized and cropped as those of ImageNet."""
    return build_loader(
        dict(
            batch_size=args.batch_size, num_workers=args.num_workers,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'), dataset=dict(
                type='CustomDataset', data_root=folder, pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(type='ResizeEdge', scale=args.image_size * 8 // 7),
                    dict(type='CenterCrop', crop_size=args.image_size),
                    dict(type='PackInputs')])))


def build_network(args):
    """A slimmable network, and the preprocessor of its images."""
    network = MODELS.build(
        dict(type='us3l_mm.SlimmableResNet', depth=args.depth,
             base_channels=args.base_channels,
             stem_channels=args.base_channels))
    network.init_weights()
    preprocessor = MODELS.build(
        dict(type='SelfSupDataPreprocessor', mean=[123.675, 116.28, 103.53],
             std=[58.395, 57.12, 57.375], to_rgb=True))
    return network.to(args.device), preprocessor.to(args.device)


class Work:
    """Calibration and features of any widths, over all the images."""

    def __init__(self, network, preprocessor, loader):
        self.network, self.preprocessor = network, preprocessor
        self.loader, self.mixed = loader, shuffled(loader)

    def read(self):
        """A pass over the data that does nothing with it."""
        for _ in image_batches(self.loader, self.preprocessor):
            pass

    def forget(self):
        """Forget all statistics, so that each way uses its own."""
        for layer in slimmable_layers(self.network):
            if layer.measured_subnets() is not None:
                layer.clear_statistics()

    def calibrate(self, subnets):
        calibrate(self.network, image_batches(self.mixed, self.preprocessor),
                  subnets)

    def extract(self, subnets):
        """Features by sub-network."""
        return extract_features(
            self.network, labelled_batches(self.loader, self.preprocessor),
            subnets)[0]


def time_way(watch, work, way, subnets):
    """Time one of the two ways; returns its features by sub-network."""
    groups = [subnets] if way == ONE_PASS else [[subnet] for subnet in subnets]

    def calibrate_all():
        for group in groups:
            work.calibrate(group)

    def extract_all():
        features = {}
        for group in groups:
            features.update(work.extract(group))
        return features

    work.forget()
    watch((way, CALIBRATION), calibrate_all)
    return watch((way, FEATURES), extract_all)


def time_round(watch, work, subnets, ways):
    """Time both ways; returns how far their features differ."""
    watch(READING, work.read)
    features = {way: time_way(watch, work, way, subnets) for way in ways}
    return max(
        float(
            np.abs(features[ONE_PASS][s] - features[BY_WIDTH][s]).max() /
            np.abs(features[BY_WIDTH][s]).max()) for s in subnets)


def summarise(watch):
    """Medians in seconds and ratios, by part."""
    rows = []
    for part, names in ((CALIBRATION, [CALIBRATION]), (FEATURES, [FEATURES]),
                        ('both', PARTS)):
        seconds = {
            way: [
                ms / 1000 for ms in watch.ms(*((way, name) for name in names))]
            for way in WAYS}
        ratios = [a / b for a, b in zip(seconds[BY_WIDTH], seconds[ONE_PASS])]
        rows.append(
            dict(part=part, one_pass_s=median(seconds[ONE_PASS]),
                 by_width_s=median(seconds[BY_WIDTH]), ratio=median(ratios),
                 ratio_range=[min(ratios), max(ratios)]))
    return dict(parts=rows, reading_s=median(watch.ms(READING)) / 1000)


def show(figures, args):
    table = Table(title=f'ResNet-{args.depth} ({args.base_channels} base '
                  f'channels), {args.num_widths} widths, {args.num_images} '
                  f'images, {args.image_size} px, batch {args.batch_size}, '
                  f'{args.num_workers} workers, {device_name(args.device)}')
    for column in ('part', 'one pass s', 'by width s', 'ratio', 'rounds'):
        table.add_column(column,
                         justify='left' if column == 'part' else 'right')
    for row in figures['parts']:
        low, high = row['ratio_range']
        table.add_row(row['part'], f'{row["one_pass_s"]:.2f}',
                      f'{row["by_width_s"]:.2f}', f'{row["ratio"]:.2f}',
                      f'{low:.2f}..{high:.2f}')
    console = Console()
    console.print(table)
    console.print(f'reading the images once: {figures["reading_s"]:.2f} s; '
                  f'one pass reads them twice, by width '
                  f'{2 * args.num_widths} times')
    console.print('features of the two ways differ by at most '
                  f'{figures["largest_difference"]:.1e} of the largest')


def benchmark(args):
    torch.manual_seed(0)
    MMLogger.get_instance('benchmark', log_level='WARNING')
    with (TemporaryDirectory() as folder,
          DefaultScope.overwrite_default_scope('mmpretrain')):
        write_images(folder, args.num_images, 2 * args.image_size)
        work = Work(*build_network(args), make_loader(folder, args))
        subnets = default_subnets(work.network, args.num_widths)
        watch, gaps = Stopwatch(args.device), []
        time_round(watch, work, subnets[:1], WAYS)
        watch.times.clear()  # the warm-up
        for index in track(range(args.rounds), 'timing'):
            gaps.append(
                time_round(watch, work, subnets,
                           WAYS[::-1] if index % 2 else WAYS))
    figures = dict(summarise(watch), largest_difference=max(gaps))
    show(figures, args)
    save(figures, args)


def main(argv=None):
    args = parse_args(argv)
    with errors_as_sentences('calibration', args.debug):
        benchmark(args)


if __name__ == '__main__':
    main()
