# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What a width of a vision transformer costs, forward and backward.

Three ways are timed in turn: the slimmable network at the width, the ordinary
one that it is cut into, and the slimmable one without skipping what no layer
reads, as the reference computes it. Figures are medians over the rounds; on a
CPU the processor time of this process, so that others on the machine matter
less.
"""
import argparse
import json
import time
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from us3l_mm.evaluation import count_complexity
from us3l_mm.export import slice_network
from us3l_mm.models import SlimmableViT, at_width


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--arch', default='tiny', help='default: tiny')
    parser.add_argument('--slice', choices=['input', 'embed'], default='input',
                        help='default: input')
    parser.add_argument('--image-size', type=int, default=32,
                        help='height and width in pixels (default: 32)')
    parser.add_argument('--patch-size', type=int, default=4, help='default: 4')
    parser.add_argument('--batch-size', type=int, default=32,
                        help='default: 32')
    parser.add_argument('--widths', type=float, nargs='+',
                        default=[1.0, 0.75, 0.5, 0.25])
    parser.add_argument('--rounds', type=int, default=5,
                        help='timed rounds after one warm-up (default: 5)')
    parser.add_argument('--device',
                        default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--json', help='also write the figures to this file')
    return parser.parse_args()


def milliseconds(network, images):
    """Of a forward and a backward pass."""
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


def time_width(networks, width, images, rounds):
    """Medians by name, of networks that are at ``width`` or are set to it."""
    times = {name: [] for name in networks}
    for index in range(rounds + 1):
        for name, network in networks.items():
            with at_width(network, width):
                passed = milliseconds(network, images)
            if index:  # the first is the warm-up
                times[name].append(passed)
    return {name: median(values) for name, values in times.items()}


def main():
    args = parse_args()
    torch.manual_seed(0)
    slimmable, reference = (SlimmableViT(args.arch, slice=args.slice,
                                         img_size=args.image_size,
                                         patch_size=args.patch_size,
                                         skip_dead=skip).to(args.device)
                            for skip in (True, False))
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size,
                         device=args.device)
    sizes = count_complexity(slimmable, args.widths, (args.image_size, ) * 2)
    rows = []
    for width in args.widths:
        ms = time_width(
            dict(slimmable=slimmable, sliced=slice_network(slimmable, width),
                 reference=reference), width, images, args.rounds)
        size = sizes[width]
        rows.append(
            dict(width=width, macs=size.macs,
                 reference_macs=(size.reference or size).macs, **ms))
    table = Table(title=f'ViT-{args.arch}, slice={args.slice!r}, '
                  f'{args.image_size} px, patch {args.patch_size}, batch '
                  f'{args.batch_size}, {args.device}')
    # In MMACs and milliseconds: this network, as cut, and as the reference.
    for column in ('width', 'MMACs', 'ref.\nMMACs', 'ms', 'cut\nms',
                   'ref.\nms', 'ms /\ncut', 'ref.\n/ ms'):
        table.add_column(column, justify='right')
    for row in rows:
        ours, cut, theirs = (row[name]
                             for name in ('slimmable', 'sliced', 'reference'))
        table.add_row(f'{row["width"]:g}', f'{row["macs"] / 1e6:.1f}',
                      f'{row["reference_macs"] / 1e6:.1f}', f'{ours:.1f}',
                      f'{cut:.1f}', f'{theirs:.1f}', f'{ours / cut:.3f}',
                      f'{theirs / ours:.2f}')
    Console().print(table)
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(
                dict(widths=rows, settings=vars(args),
                     torch=str(torch.__version__)), file, indent=2)


if __name__ == '__main__':
    main()
