# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What kNN of several sub-networks costs beyond their forward passes.

The features of a bank and of queries are extracted at all widths in one pass,
and the queries are classified by their nearest neighbours, as WidthKNNHook and
tools/evaluate_widths.py do. The floor is the forward passes of the network at
these widths over the same images, which are ready in memory. Both are timed in
turn, round by round. Figures are medians over the rounds, and ratios medians
of the ratios of a round. On a CPU they are seconds of this process and its
threads, so that other programs do not count. Reading the images, with their
preprocessing and what tells them apart, is a part of the extraction, and is
timed once more by itself. Calibration of the norms comes before, is timed
once, and is not in the ratio.

The images are noise and so are their labels: the accuracy is that of chance.
"""
import argparse
import time
from statistics import median

import torch
from mmengine.fileio import dump
from mmengine.logging import MMLogger
from mmpretrain.datasets import PackInputs
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.data import Dataset
from arguments import add_shared, at_least

from us3l_mm.apis.command_line import errors_as_sentences
from us3l_mm.evaluation import (calibrate, default_subnets, encode, encoder,
                                knn_accuracy)
from us3l_mm.evaluation.data import (build_loader, image_batches,
                                     labelled_batches, shuffled)
from us3l_mm.evaluation.features import IDENTITY
from us3l_mm.evaluation.latency import device_name
from us3l_mm.models.layers import at, evaluation_mode
from us3l_mm.registry import MODELS

BARE, FEATURES, NEIGHBOURS, BOTH, READING, CALIBRATION = (
    'bare forwards', 'features', 'neighbours', 'both', 'reading',
    'calibration')
CLASSES = 10


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--depth', type=int, default=18, choices=[
        18, 34, 50, 101, 152], help='depth of the ResNet (default: 18)')
    parser.add_argument('--base-channels', type=at_least(8), default=64,
                        help='channels of its first stage (default: 64)')
    parser.add_argument('--num-widths', type=at_least(1), default=7,
                        help='evenly from 0.25 to 1 (default: 7)')
    parser.add_argument('--bank', type=at_least(20), default=2000,
                        help='images of the bank (default: 2000)')
    parser.add_argument('--queries', type=at_least(2), default=1000,
                        help='images to classify (default: 1000)')
    parser.add_argument('--image-size', type=at_least(8), default=32,
                        help='height and width in pixels (default: 32)')
    parser.add_argument('--batch-size', type=at_least(2), default=64,
                        help='default: 64')
    parser.add_argument('--num-workers', type=at_least(0), default=0,
                        help='processes that load images (default: 0)')
    parser.add_argument('--channels-last', action='store_true',
                        help='the memory layout of convolutions')
    add_shared(parser, rounds=3)
    return parser.parse_args(argv)


class Noise(Dataset):
    """Images and labels of noise, which are there already, as CIFAR's are."""

    def __init__(self, length, size, seed):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randint(256, (length, size, size, 3),
                                    dtype=torch.uint8,
                                    generator=generator).numpy()
        self.labels = torch.randint(CLASSES, (length, ),
                                    generator=generator).tolist()
        self.pack = PackInputs()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.pack(
            dict(img=self.images[index], gt_label=self.labels[index]))


class Work:
    """Network and loaders, and what is done with them."""

    def __init__(self, args):
        self.network = MODELS.build(
            dict(type='us3l_mm.SlimmableResNet_CIFAR', depth=args.depth,
                 base_channels=args.base_channels,
                 stem_channels=args.base_channels))
        self.network.init_weights()
        self.network.to(args.device)
        if args.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.subnets = default_subnets(self.network, args.num_widths)
        self.preprocessor = MODELS.build(
            dict(type='mmpretrain.SelfSupDataPreprocessor', mean=[127.5] * 3,
                 std=[64.] * 3, to_rgb=True)).to(args.device)
        self.loaders = [
            build_loader(
                dict(dataset=Noise(length, args.image_size,
                                   seed), batch_size=args.batch_size,
                     num_workers=args.num_workers, sampler=dict(
                         type='DefaultSampler', shuffle=False),
                     collate_fn=dict(type='default_collate')))
            for seed, length in enumerate((args.bank, args.queries))]
        self.device = args.device
        self.images = [
            images for loader in self.loaders
            for images in image_batches(loader, self.preprocessor)]

    def calibrate(self):
        bank = shuffled(self.loaders[0])
        calibrate(self.network, image_batches(bank, self.preprocessor),
                  self.subnets)

    def batches(self):
        """Those of the bank, and those of the queries."""
        return [
            labelled_batches(loader, self.preprocessor)
            for loader in self.loaders]

    def read(self):
        for batches in self.batches():
            for _ in batches:
                pass

    def features(self):
        encoders = {s: encoder(self.network, s) for s in self.subnets}
        return [encode(encoders, batches) for batches in self.batches()]

    def accuracies(self, found):
        (bank, bank_labels), (queries, labels) = found
        identities = bank[IDENTITY], queries[IDENTITY]
        return [
            knn_accuracy(bank.pop(subnet), bank_labels, queries.pop(subnet),
                         labels, identities=identities, device=self.device)
            for subnet in self.subnets]

    @torch.no_grad()
    def bare(self):
        with evaluation_mode(self.network):
            for subnet in self.subnets:
                with at(self.network, subnet):
                    for images in self.images:
                        self.network(images)


class Watch:
    """Seconds of named calls, a list per name, an entry per round."""

    def __init__(self, device):
        self.on_gpu = torch.device(device).type == 'cuda'
        self.times = {}

    def now(self):
        if not self.on_gpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def __call__(self, name, call):
        start = self.now()
        result = call()
        self.times.setdefault(name, []).append(self.now() - start)
        return result


def time_round(watch, work, bare_first):
    """Time everything once; returns the accuracies."""
    if bare_first:
        watch(BARE, work.bare)
    found = watch(FEATURES, work.features)
    accuracies = watch(NEIGHBOURS, lambda: work.accuracies(found))
    if not bare_first:
        watch(BARE, work.bare)
    watch(READING, work.read)
    return accuracies


def summarise(times):
    """Medians in seconds, and ratios to the bare forwards, by part."""
    parts = {name: times[name] for name in (BARE, FEATURES, NEIGHBOURS)}
    parts[BOTH] = [sum(pair) for pair in zip(*list(parts.values())[1:])]
    parts[READING] = times[READING]
    parts[CALIBRATION] = times[CALIBRATION] * len(times[BARE])
    rows = []
    for part, seconds in parts.items():
        ratios = [a / b for a, b in zip(seconds, times[BARE])]
        rows.append(
            dict(part=part, s=median(seconds), ratio=median(ratios),
                 ratio_range=[min(ratios), max(ratios)]))
    return rows


def show(rows, args):
    table = Table(title=f'ResNet-{args.depth} ({args.base_channels} base '
                  f'channels), {args.num_widths} widths, {args.bank} + '
                  f'{args.queries} images, {args.image_size} px, batch '
                  f'{args.batch_size}, {device_name(args.device)}')
    for column in ('part', 's', '/ bare', 'rounds'):
        table.add_column(column,
                         justify='left' if column == 'part' else 'right')
    for row in rows:
        low, high = row['ratio_range']
        table.add_row(row['part'], f'{row["s"]:.2f}', f'{row["ratio"]:.3f}',
                      f'{low:.3f}..{high:.3f}', end_section=row['part'] in {
                          BARE, BOTH})
    console = Console()
    console.print(table)
    console.print('features contain the reading; both: features and '
                  'neighbours, which is what kNN costs')


def benchmark(args):
    torch.manual_seed(0)
    MMLogger.get_instance('benchmark', log_level='WARNING')
    work, watch = Work(args), Watch(args.device)
    watch(CALIBRATION, work.calibrate)  # the warm-up as well
    for index in track(range(args.rounds), 'timing'):
        accuracies = time_round(watch, work, bare_first=index % 2 == 0)
    rows = summarise(watch.times)
    show(rows, args)
    if args.json:
        dump(
            dict(parts=rows, accuracies=accuracies, settings=vars(args),
                 torch=str(torch.__version__), machine=device_name(
                     args.device)), args.json, indent=2)


def main(argv=None):
    args = parse_args(argv)
    with errors_as_sentences('width_knn', args.debug):
        benchmark(args)


if __name__ == '__main__':
    main()
