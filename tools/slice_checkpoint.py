# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Slice one width out of a slimmable checkpoint, as an ordinary network.

The width is given, or the widest within a budget is chosen. Of a gated
network, 'dense' is the network without gates, and 'gated' is pruned: images of
its config tell which channels are never on and removed, which are always on,
and which depend on the image and have to stay or go for all images. The file
has been loaded into the network that will use it and compared.
"""
import argparse

import torch
from rich.console import Console
from rich.table import Table

from us3l_mm.apis import Budget, prune_checkpoint, slice_checkpoint
from us3l_mm.apis.budget import COSTS, format_amount, format_seconds
from us3l_mm.apis.command_line import (OptionsAction, add_common_flags,
                                       errors_as_sentences)
from us3l_mm.evaluation.latency import device_name
from us3l_mm.export.formats import FORMATS
from us3l_mm.fileio import checkpoint_of
from us3l_mm.models import Subnet

EXAMPLE = """examples:
  python tools/slice_checkpoint.py work_dirs/us3l/epoch_400.pth w050.pth \\
      --width 0.5
  python tools/slice_checkpoint.py measured.pth small.onnx --flops 250M \\
      --format onnx --input-size 32
  python tools/slice_checkpoint.py work_dirs/gated/epoch_500.pth pruned.pth \\
      --width gated --target 0.3 --max-gap 0.1"""


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE,
        formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        'checkpoint', help='file of the slimmable network, or the folder of a '
        'run')
    parser.add_argument('out', help='file to write')
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument('--width', metavar='W', help='for instance 0.5, '
                       'or dense or gated')
    which.add_argument(
        '--flops', metavar='N', help='the widest with at most '
        'so many multiply-accumulates\nper image, such as 1G')
    which.add_argument(
        '--params', metavar='N', help='the widest with at most '
        'so many parameters, such as 5M')
    which.add_argument(
        '--latency', metavar='T', help='the widest that takes '
        'at most so long per image\non --device, such as 10ms')
    parser.add_argument('--format', default='mmpretrain', choices=FORMATS,
                        help='whose keys to write (default: mmpretrain)')
    parser.add_argument(
        '--config', help='config of the training, for the images by which to '
        'measure\nthe batch-norm statistics that the checkpoint lacks, '
        'or gates\n'
        '(default: the one that the run saved)')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction,
                        metavar='KEY=VALUE', help='changes to that config')
    parser.add_argument(
        '--num-images', type=int, metavar='N',
        help='images to measure them with (default: 10000, '
        'or 2000\nfor gates)')
    gates = parser.add_argument_group('of --width gated')
    gates.add_argument(
        '--target', type=float, metavar='R', help='compute of the gated '
        'network, as a share of the dense\none (default: that of its '
        'threshold in the checkpoint)')
    gates.add_argument(
        '--min-share', type=float, metavar='S', help='keep channels that are '
        'on for this share of images\n(default: those that are on most '
        'often, as many as cost\nno more than the gated network on average)')
    gates.add_argument(
        '--max-gap', type=float, metavar='G', help='refuse to write a network '
        "whose features differ from\nthe gated one's by more than this "
        'share of them\n(default: print the gap)')
    parser.add_argument(
        '--input-size', type=int, metavar='PX',
        help='side of an image, for --flops, --latency, the '
        'check and ONNX\n(default: 224, or 32 for a '
        'ResNet_CIFAR; with gates,\nthat of the images)')
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu',
        help='where to measure (default: cuda where there is '
        'one, else cpu)')
    add_common_flags(parser)
    args = parser.parse_args(argv)
    given = [
        name for name in ('target', 'min_share', 'max_gap')
        if getattr(args, name) is not None]
    if given and not is_gated(args.width):
        parser.error(f'--{given[0].replace("_", "-")} is for --width gated')
    return args


def is_gated(width):
    """Whether the text ``width`` names a gated network."""
    try:
        return width is not None and Subnet.of(width).gated
    except ValueError:
        return False  # it is refused later


def describe_size(size):
    """What the sub-network costs, and what has been left out as unread."""
    text = (f'{format_amount(size.params)} parameters, '
            f'{format_amount(size.macs)} MACs')
    if size.reference is not None and size.reference.macs > size.macs:
        saved = 100 * (1 - size.macs / size.reference.macs)
        text += (f'; {saved:.0f} % less than the '
                 f'{format_amount(size.reference.macs)} MACs (of '
                 f'{format_amount(size.reference.params)} parameters) that '
                 'the reference needs for the same result')
    return text


def prune(args):
    """Write the pruned network of a gated one, and say what it is."""
    report = prune_checkpoint(
        args.checkpoint, args.out, args.target, args.min_share, args.max_gap,
        args.format, args.config,
        2000 if args.num_images is None else args.num_images, args.input_size,
        args.device, args.trust_pickle, args.cfg_options)
    off, always, depends = map(sum, zip(*report.use.kinds.values()))
    print(f'On {report.meta["gates"]["images"]}, the gated network computes '
          f'{report.use.ratio:.4f} of the dense one. {off} of its channels '
          f'are never on and are removed, {always} are always on and stay. Of '
          f'the {depends} others, those stay that are on for at least '
          f'{report.min_share:.1%} of the images' +
          (', and the norms behind them are matched to the gated network'
           if report.meta['gates']['matched_norms'] else '') + '.\n'
          f'The gap to the features of the gated network: '
          f'{report.gap}.')
    dense, pruned = report.dense_size, report.size
    gated_macs = report.use.ratio * dense.macs
    table = Table('network', 'parameters', 'MACs', 'ms an image')
    for name, params, macs, kind in (('dense', format_amount(dense.params),
                                      dense.macs, 'dense'),
                                     ('gated, without the channels off', '',
                                      gated_macs, 'gated'),
                                     ('pruned', format_amount(pruned.params),
                                      pruned.macs, 'pruned')):
        table.add_row(name, params, format_amount(macs),
                      f'{report.milliseconds[kind]:.2f}')
    Console().print(table)
    print(f'Measured on {device_name(args.device)}.\n'
          f'{report.out}: gated for {args.format}, features '
          f'{report.meta["feature_channels"][-1]}; largest difference of the '
          f'file from the pruned network {report.difference:.1e}.\n\n'
          f'{report.usage}')


def main(argv=None):
    args = parse_args(argv)
    with errors_as_sentences('slice_checkpoint', args.debug):
        args.checkpoint = checkpoint_of(args.checkpoint)
        if is_gated(args.width):
            return prune(args)
        subnet = args.width
        for kind in COSTS:
            if getattr(args, kind) is not None:
                subnet = Budget.parse(kind, getattr(args, kind))
        report = slice_checkpoint(
            args.checkpoint, args.out, subnet, args.format, args.config,
            10000 if args.num_images is None else args.num_images,
            args.input_size, args.device, args.trust_pickle, args.cfg_options)
    if report.choice is not None:
        choice, show = report.choice, subnet.show
        print(f'{choice.subnet} takes {show(choice.cost)}' +
              (f'; {choice.next_subnet} would take '
               f'{show(choice.next_cost)}.' if choice.next_subnet else '.'))
    time = format_seconds(report.milliseconds / 1000)
    print(f'{describe_size(report.size)}; {time} an image on '
          f'{device_name(args.device)}.')
    statistics = report.meta['statistics']
    if not statistics.startswith('measured'):
        statistics = f'from {statistics}'
    print(f'{report.out}: {report.subnet} for {args.format}, features '
          f'{report.meta["feature_channels"][-1]}, statistics '
          f'{statistics}; largest difference from the '
          f'slimmable network {report.gap:.1e}.\n\n{report.usage}')


if __name__ == '__main__':
    main()
