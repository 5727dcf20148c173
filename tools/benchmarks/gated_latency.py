# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What gates save in time, beside what they save in multiply-accumulates.

Four networks of the same weights: the dense one, without gates; the masked
one, which multiplies all channels by their masks, as in training; the dynamic
one, which computes only the channels that are on; and the pruned one, a plain
network of these channels. The weights are random, and the gates leave a given
share of the channels on, drawn at random and the same for each image. So the
last three compute the same, which is checked before anything is timed. All
are timed in turn, round by round, in evaluation mode without gradients;
latencies are medians over the rounds, and ratios to the dense network are
medians of the ratios of a round.
"""
import argparse
import math
from statistics import median

import torch
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import track
from rich.table import Table
from arguments import add_shared, at_least
from results import save
from stopwatch import Stopwatch

from us3l_mm.apis.command_line import errors_as_sentences
from us3l_mm.evaluation.latency import device_name
from us3l_mm.export import prune, slice_network
from us3l_mm.export.pruning import pruned_ratio
from us3l_mm.models import ActiveChannels, GatedResNet, GatedResNet_CIFAR
from us3l_mm.models.layers import FULL, GATED, ChannelGate

KINDS = DENSE, MASKED, DYNAMIC, PRUNED = ('dense', 'masked', 'dynamic',
                                          'pruned')
# Smaller images get the stem of a CIFAR network.
SMALL = 64
# A timing of a fast network covers several forwards: seconds that it lasts.
LONG_ENOUGH = 0.1
# Relative to the largest output; leaves room for TF32.
TOLERANCE = 1e-2


def density(text):
    """A type for argparse: a share of channels."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(
            f'a density is a share of channels in (0, 1], got {text!r}')
    return value


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--depths', type=int, nargs='+', default=[18, 50],
                        choices=[18, 34, 50, 101, 152], metavar='D',
                        help='depths of the ResNets (default: 18 50)')
    parser.add_argument(
        '--image-sizes', type=at_least(1), nargs='+', metavar='PX', default=[
            32, 96, 224], help='height and width in pixels; below 64 the stem '
        'is that\nof a CIFAR network (default: 32 96 224)')
    parser.add_argument(
        '--densities', type=density, nargs='+', metavar='D', default=[
            0.1, 0.25, 0.5, 0.75, 0.9], help='shares of channels that are on\n'
        '(default: 0.1 0.25 0.5 0.75 0.9)')
    parser.add_argument('--batch-size', type=at_least(1), default=1,
                        help='images of a forward (default: 1)')
    add_shared(parser, rounds=15)
    return parser.parse_args(argv)


def fix_gates(network, share):
    """Let the gates leave the same ``share`` of channels on for any image.

    Returns:
        dict: The channels that are on, for each gate by its name.
    """
    kept = {}
    for name, gate in network.named_modules():
        if not isinstance(gate, ChannelGate):
            continue
        # The hidden layer is 1 for every image.
        torch.nn.init.zeros_(gate.norm.weight)
        torch.nn.init.ones_(gate.norm.bias)
        channels = len(gate.conv2.weight)
        on = torch.zeros(channels, dtype=torch.bool)
        on[torch.randperm(channels)[:max(1, round(share * channels))]] = True
        gate.conv2.weight.copy_(
            (2.0 * on - 1).view(-1, 1, 1, 1).expand_as(gate.conv2.weight))
        kept[name] = on
    return kept


def build_four(depth, size, share, args):
    """The networks by kind, and their multiply-accumulates."""
    torch.manual_seed(0)
    network = (GatedResNet_CIFAR if size < SMALL else GatedResNet)(depth)
    network.init_weights()
    kept = fix_gates(network, share)
    networks = {
        DENSE: slice_network(network, FULL),
        MASKED: slice_network(network, GATED),
        DYNAMIC: ActiveChannels(network),
        PRUNED: prune(network, kept)}
    compute = network.compute((size, size))
    counts = torch.tensor([[int(on.sum()) for on in kept.values()]])
    gated = int(compute.macs(counts))
    macs = dict(
        zip(KINDS,
            (compute.total, int(compute.macs(compute.channels[None])), gated,
             round(pruned_ratio(compute, kept) * compute.total))))
    return {
        kind: plain.to(args.device).eval()
        for kind, plain in networks.items()}, macs


def largest_difference(networks, images):
    """Of the outputs, relative to the largest output of the masked one."""
    outputs = {
        kind: networks[kind](images)[-1] for kind in (MASKED, DYNAMIC, PRUNED)}
    scale = outputs[MASKED].abs().max()
    return max(((outputs[kind] - outputs[MASKED]).abs().max() / scale).item()
               for kind in (DYNAMIC, PRUNED))


def time_four(networks, images, args):
    """Milliseconds of a forward, a list for each kind."""
    warm = Stopwatch(args.device)
    for kind, network in networks.items():
        for _ in range(3):
            warm(kind, lambda: network(images))
    forwards = max(1, math.ceil(1000 * LONG_ENOUGH / min(warm.times[DENSE])))
    watch = Stopwatch(args.device)
    for index in range(args.rounds):
        first = index % len(KINDS)  # another kind begins every round
        for kind in KINDS[first:] + KINDS[:first]:

            def several(network=networks[kind]):
                for _ in range(forwards):
                    network(images)

            watch(kind, several)
    return {
        kind: [t / forwards for t in times]
        for kind, times in watch.times.items()}


def measure(depth, size, share, args):
    """A row of the result."""
    networks, macs = build_four(depth, size, share, args)
    images = torch.randn(args.batch_size, 3, size, size, device=args.device)
    gap = largest_difference(networks, images)
    if gap > TOLERANCE:
        raise RuntimeError(
            f'At depth {depth}, {size} px and density {share:g} the networks '
            f'differ by {gap:.1e}: there is nothing to compare.')
    row = dict(depth=depth, image_size=size, density=share,
               largest_difference=gap)
    times = time_four(networks, images, args)
    for kind in KINDS:
        ratios = [a / b for a, b in zip(times[kind], times[DENSE])]
        row[kind] = dict(ms=median(times[kind]), ratio=median(ratios),
                         ratio_range=[min(ratios), max(ratios)],
                         macs=macs[kind], macs_ratio=macs[kind] / macs[DENSE])
    return row


def show(rows, args):
    table = Table(title=f'Gated ResNets, batch {args.batch_size}, '
                  f'{device_name(args.device)}')
    for column in ('depth', 'px', 'density', 'MACs', *KINDS, 'dynamic /',
                   'pruned /'):
        table.add_column(column, justify='right')
    for row in rows:
        table.add_row(
            str(row['depth']), str(row['image_size']), f'{row["density"]:g}',
            f'{row[DYNAMIC]["macs_ratio"]:.3f}',
            *(f'{row[kind]["ms"]:.2f}' for kind in KINDS),
            *(f'{row[kind]["ratio"]:.3f}' for kind in (DYNAMIC, PRUNED)),
            end_section=row['density'] == args.densities[-1])
    console = Console(width=max(Console().width, 90))
    console.print(table)
    console.print(
        'dense to pruned: ms of a batch; MACs: of the gated network, as a '
        'share of the dense one; dynamic /, pruned /: medians of the ratios of'
        ' a round to the dense network')
    for depth, size, limit in break_even(rows):
        console.print(f'ResNet-{depth} at {size} px: ' + (
            'dynamic is not faster than dense at any of the densities'
            if limit is None else 'dynamic is faster than dense up to density '
            f'{limit:g}'))


def break_even(rows):
    """For each network, the highest density up to which dynamic is faster."""
    found = {}
    for row in sorted(rows, key=lambda row: row['density']):
        key = row['depth'], row['image_size']
        limit, over = found.get(key, (None, False))
        over = over or row[DYNAMIC]['ratio'] >= 1
        found[key] = limit if over else row['density'], over
    return [(*key, limit) for key, (limit, _) in found.items()]


@torch.no_grad()
def benchmark(args):
    MMLogger.get_instance('benchmark', log_level='WARNING')
    cases = [(depth, size, share) for depth in args.depths
             for size in args.image_sizes for share in args.densities]
    rows = [measure(*case, args) for case in track(cases, 'timing')]
    show(rows, args)
    save(
        dict(
            rows=rows, faster_up_to=[
                dict(depth=depth, image_size=size, density=limit)
                for depth, size, limit in break_even(rows)]), args)


def main(argv=None):
    args = parse_args(argv)
    with errors_as_sentences('gated_latency', args.debug):
        benchmark(args)


if __name__ == '__main__':
    main()
