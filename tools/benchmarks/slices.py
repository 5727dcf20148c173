# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What a sliced network costs, and what the slimmable one costs at a width.

Three networks compute the same thing: the network sliced out at a width, the
plain network of that width built from scratch (MMPretrain's
ResNet(base_channels=64w, stem_channels=64w), so widths are multiples of 1/8),
and the slimmable network running at it. They hold the same weights, and their
outputs are compared before anything is timed. All are timed in turn, round by
round, in evaluation mode without gradients; latencies are medians over the
rounds, and ratios are medians of the ratios of a round.

Peak memory is the network's weights and statistics, and the most that a
forward pass has allocated at any moment, by PyTorch's own count on either
device: on a GPU that of the caching allocator, on a CPU that of the profiler.

All networks and images have the same memory layout. Channels last is the
faster one for convolutions as a rule, see --layout.
"""
import argparse
import json
import math
import os.path as osp
from statistics import median
from tempfile import TemporaryDirectory

import torch
from mmengine.logging import MMLogger
from mmpretrain.models import ResNet
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.autograd.profiler import profile
from arguments import add_shared, at_least, width_argument
from results import save
from stopwatch import Stopwatch

from us3l_mm.apis.command_line import errors_as_sentences
from us3l_mm.evaluation import calibrate
from us3l_mm.evaluation.latency import device_name
from us3l_mm.export import slice_network
from us3l_mm.models import SlimmableResNet, set_subnet

BASE_CHANNELS = 64
SLICED, PLAIN, SLIMMABLE = KINDS = ('sliced', 'plain', 'slimmable')
# A timing of a fast network covers several forwards: seconds that it lasts.
LONG_ENOUGH = 0.2
# Relative to the largest output; leaves room for TF32.
TOLERANCE = 1e-2
LAYOUTS = dict(channels_last=torch.channels_last,
               contiguous=torch.contiguous_format)
MIB = 2**20


def eighth(text):
    """A type for argparse: a width at which a ResNet is a plain one."""
    value = width_argument(text)
    if value < 0.25 or not (8 * value).is_integer():
        raise argparse.ArgumentTypeError(
            'widths are multiples of 1/8 from 0.25 to 1, where a plain ResNet '
            f'is the same network; got {text}')
    return value


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--depth', type=int, default=50, choices=[
        18, 34, 50, 101, 152], help='depth of the ResNet (default: 50)')
    parser.add_argument('--image-size', type=at_least(1), default=224,
                        help='height and width in pixels (default: 224)')
    parser.add_argument('--batch-size', type=at_least(1), default=8,
                        help='images of a forward (default: 8)')
    parser.add_argument(
        '--widths', type=eighth, nargs='+', metavar='W', default=[
            0.25, 0.5, 0.75, 1.0], help='multiples of 1/8 from 0.25 to 1 '
        '(default: 0.25 0.5 0.75 1.0)')
    parser.add_argument(
        '--layout', choices=LAYOUTS, default='channels_last',
        help='memory layout of weights and images '
        '(default: channels_last)')
    add_shared(parser, rounds=7)
    return parser.parse_args(argv)


def build_slimmable(args):
    """A slimmable network with statistics of all widths."""
    network = SlimmableResNet(args.depth)
    network.init_weights()
    network.to(args.device, memory_format=LAYOUTS[args.layout]).eval()
    size = (8, 3, args.image_size, args.image_size)
    calibrate(network, [torch.randn(size, device=args.device)], args.widths)
    return network


def build_three(slimmable, width, args):
    """The networks of one width, by kind; the slimmable one is shared."""
    layout = LAYOUTS[args.layout]
    sliced = slice_network(slimmable, width).to(memory_format=layout)
    channels = int(BASE_CHANNELS * width)
    plain = ResNet(args.depth, base_channels=channels, stem_channels=channels)
    plain.load_state_dict(sliced.state_dict(), strict=True)
    plain.to(args.device, memory_format=layout).eval()
    return dict(zip(KINDS, (sliced, plain, slimmable)))


def largest_difference(three, width, images):
    """Of the outputs, relative to the largest output of the plain network."""
    set_subnet(three[SLIMMABLE], width)
    outputs = {kind: three[kind](images)[-1] for kind in KINDS}
    scale = outputs[PLAIN].abs().max()
    return max(((outputs[kind] - outputs[PLAIN]).abs().max() / scale).item()
               for kind in (SLICED, SLIMMABLE))


def peak_memory(network, images):
    """Bytes of the network, and those of its forward at their peak."""
    held = sum(tensor.numel() * tensor.element_size()
               for tensor in network.state_dict().values())
    return held + (peak_on_gpu if images.is_cuda else peak_on_cpu)(network,
                                                                   images)


def peak_on_gpu(network, images):
    torch.cuda.synchronize(images.device)
    torch.cuda.reset_peak_memory_stats(images.device)
    before = torch.cuda.memory_allocated(images.device)
    network(images)
    return torch.cuda.max_memory_allocated(images.device) - before


def peak_on_cpu(network, images):
    """The running sum of what the profiler saw allocated and freed."""
    with profile(profile_memory=True) as profiler:
        network(images)
    with TemporaryDirectory() as folder:
        path = osp.join(folder, 'trace.json')
        profiler.export_chrome_trace(path)
        with open(path) as file:
            events = json.load(file)['traceEvents']
    peak = now = 0
    for event in sorted((e for e in events if e['name'] == '[memory]'),
                        key=lambda event: event['args']['Ev Idx']):
        now += event['args']['Bytes']
        peak = max(peak, now)
    return peak


def forwards_of(network, images, device):
    """How many forwards a timing needs; warms up."""
    watch = Stopwatch(device)
    for _ in range(3):
        watch('forward', lambda: network(images))
    return max(1, math.ceil(1000 * LONG_ENOUGH / min(watch.times['forward'])))


def time_round(watch, networks, forwards, images, first):
    """Time all networks once, beginning with another kind every round."""
    order = KINDS[first % 3:] + KINDS[:first % 3]
    for width, three in networks.items():
        set_subnet(three[SLIMMABLE], width)
        for kind in order:

            def several(network=three[kind], times=forwards[width]):
                for _ in range(times):
                    network(images)

            watch((width, kind), several)


def summarise(times, networks, forwards, images):
    """Latency, memory and ratios to the plain network, of every width."""
    rows = []
    for width, three in networks.items():
        set_subnet(three[SLIMMABLE], width)
        ms = {
            kind: [t / forwards[width] for t in times[width, kind]]
            for kind in KINDS}
        memory = {
            kind: peak_memory(three[kind], images) / MIB for kind in KINDS}
        row = dict(width=width, forwards=forwards[width])
        for kind in KINDS:
            ratios = [a / b for a, b in zip(ms[kind], ms[PLAIN])]
            row[kind] = dict(ms=median(ms[kind]), ratio=median(ratios),
                             ratio_range=[min(ratios),
                                          max(ratios)], mib=memory[kind],
                             memory_ratio=memory[kind] / memory[PLAIN])
        row['largest_difference'] = largest_difference(three, width, images)
        rows.append(row)
    return rows


def show(rows, args):
    table = Table(title=f'ResNet-{args.depth}, {args.image_size} px, batch '
                  f'{args.batch_size}, {args.layout.replace("_", " ")}, '
                  f'{device_name(args.device)}')
    for column in ('width', 'network', 'ms', '/ plain', 'rounds', 'MiB',
                   '/ plain'):
        table.add_column(column,
                         justify='left' if column == 'network' else 'right')
    for row in rows:
        for kind in KINDS:
            low, high = row[kind]['ratio_range']
            table.add_row(
                f'{row["width"]:g}' if kind == KINDS[0] else '', kind,
                f'{row[kind]["ms"]:.2f}', f'{row[kind]["ratio"]:.3f}', ''
                if kind == PLAIN else f'{low:.3f}..{high:.3f}',
                f'{row[kind]["mib"]:.1f}', f'{row[kind]["memory_ratio"]:.3f}',
                end_section=kind == KINDS[-1])
    console = Console()
    console.print(table)
    console.print(
        'ms: of a batch; / plain: median of the ratios of a round, and the '
        'lowest and highest of them; MiB: weights, statistics and the peak of '
        'a forward')
    console.print('outputs differ from the plain network by at most '
                  f'{max(row["largest_difference"] for row in rows):.1e}')


@torch.no_grad()
def benchmark(args):
    torch.manual_seed(0)
    MMLogger.get_instance('benchmark', log_level='WARNING')
    slimmable = build_slimmable(args)
    networks = {
        width: build_three(slimmable, width, args) for width in args.widths}
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size,
                         device=args.device).contiguous(
                             memory_format=LAYOUTS[args.layout])
    for width, three in networks.items():
        gap = largest_difference(three, width, images)
        if gap > TOLERANCE:
            raise RuntimeError(f'The networks of width {width:g} differ by '
                               f'{gap:.1e}: there is nothing to compare.')
    forwards = {
        width: forwards_of(three[PLAIN], images, args.device)
        for width, three in networks.items()}
    watch = Stopwatch(args.device)
    for index in track(range(args.rounds + 1), 'timing'):
        time_round(watch, networks, forwards, images, index)
        if index == 0:
            watch.times.clear()  # the warm-up
    rows = summarise(watch.times, networks, forwards, images)
    show(rows, args)
    save(dict(widths=rows), args)


def main(argv=None):
    args = parse_args(argv)
    with errors_as_sentences('slices', args.debug):
        benchmark(args)


if __name__ == '__main__':
    main()
