# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What a width of a vision transformer costs, forward and backward.

Three networks are timed in turn: the slimmable one at the width, the ordinary
one that it is sliced to, and the slimmable one that also computes what no
layer reads, as the reference does. Figures are medians over the rounds; on a
CPU of the processor time of this process, which depends less on other
processes.
"""
import argparse
import time
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from arguments import add_shared, at_least
from results import save
from us3l_mm.apis.command_line import errors_as_sentences, subnet_argument
from us3l_mm.evaluation import count_complexity
from us3l_mm.export import slice_network
from us3l_mm.models import SlimmableViT
from us3l_mm.models.layers import Subnet, at


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--arch', default='tiny', help='default: tiny')
    parser.add_argument('--slicing', choices=['input', 'embed'],
                        default='input', help='default: input')
    parser.add_argument('--image-size', type=at_least(1), default=32,
                        help='height and width in pixels (default: 32)')
    parser.add_argument('--patch-size', type=at_least(1), default=4,
                        help='default: 4')
    parser.add_argument('--batch-size', type=at_least(1), default=32,
                        help='default: 32')
    parser.add_argument('--widths', type=subnet_argument, nargs='+', default=[
        *map(Subnet, (1.0, 0.75, 0.5, 0.25))])
    add_shared(parser, rounds=5)
    return parser.parse_args(argv)


def milliseconds(network, images):
    """Milliseconds of a forward and a backward pass."""
    on_gpu = images.is_cuda
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
    start = clock()
    network(images)[-1].sum().backward()
    if on_gpu:
        torch.cuda.synchronize()
    passed = 1000 * (clock() - start)
    network.zero_grad()
    return passed


def time_subnet(networks, subnet, images, rounds):
    """Medians by name, of ``networks`` that are or run ``subnet``."""
    times = {name: [] for name in networks}
    for index in range(rounds + 1):
        for name, network in networks.items():
            with at(network, subnet):
                passed = milliseconds(network, images)
            if index:  # the first is the warm-up
                times[name].append(passed)
    return {name: median(values) for name, values in times.items()}


def benchmark(args):
    torch.manual_seed(0)
    slimmable, reference = (SlimmableViT(
        args.arch, slicing=args.slicing, img_size=args.image_size,
        patch_size=args.patch_size, skip_dead=skip).to(args.device)
                            for skip in (True, False))
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size,
                         device=args.device)
    sizes = count_complexity(slimmable, args.widths, (args.image_size, ) * 2)
    rows = []
    for subnet in args.widths:
        ms = time_subnet(
            dict(slimmable=slimmable, sliced=slice_network(slimmable, subnet),
                 reference=reference), subnet, images, args.rounds)
        size = sizes[subnet]
        rows.append(
            dict(subnet=str(subnet), width=subnet.width, macs=size.macs,
                 reference_macs=(size.reference or size).macs, **ms))
    table = Table(title=f'ViT-{args.arch}, slicing={args.slicing!r}, '
                  f'{args.image_size} px, patch {args.patch_size}, batch '
                  f'{args.batch_size}, {args.device}')
    # MMACs and milliseconds of this network, sliced, and as the reference.
    for column in ('subnet', 'MMACs', 'ref.\nMMACs', 'ms', 'sliced\nms',
                   'ref.\nms', 'ms /\nsliced', 'ref.\n/ ms'):
        table.add_column(column, justify='right')
    for row in rows:
        ours, sliced, theirs = (row[name] for name in ('slimmable', 'sliced',
                                                       'reference'))
        table.add_row(row['subnet'], f'{row["macs"] / 1e6:.1f}',
                      f'{row["reference_macs"] / 1e6:.1f}', f'{ours:.1f}',
                      f'{sliced:.1f}', f'{theirs:.1f}', f'{ours / sliced:.3f}',
                      f'{theirs / ours:.2f}')
    Console().print(table)
    save(dict(widths=rows), args)


def main(argv=None):
    args = parse_args(argv)
    with errors_as_sentences('vit_widths', args.debug):
        benchmark(args)


if __name__ == '__main__':
    main()
