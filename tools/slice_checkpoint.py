# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Slice one width out of a slimmable checkpoint, as an ordinary network.

The width is given, or the widest within a budget is chosen. The file has been
loaded into the network that will use it and compared with the slimmable one.
"""
import argparse

import torch

from us3l_mm.apis import Budget, slice_checkpoint
from us3l_mm.apis.budget import COSTS, format_amount
from us3l_mm.apis.command_line import (OptionsAction, add_common_flags,
                                       errors_as_sentences)
from us3l_mm.export.formats import FORMATS

EXAMPLE = """examples:
  python tools/slice_checkpoint.py work_dirs/us3l/epoch_400.pth w050.pth \\
      --width 0.5
  python tools/slice_checkpoint.py measured.pth small.onnx --flops 250M \\
      --format onnx --input-size 32"""


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE,
        formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('checkpoint', help='file of the slimmable network')
    parser.add_argument('out', help='file to write')
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument('--width', metavar='W', help='for instance 0.5')
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
        'measure\nthe batch-norm statistics that the checkpoint lacks\n'
        '(default: the one that the run saved)')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction,
                        metavar='KEY=VALUE', help='changes to that config')
    parser.add_argument('--num-images', type=int, default=10000, metavar='N',
                        help='images to measure them with (default: 10000)')
    parser.add_argument(
        '--input-size', type=int, metavar='PX',
        help='side of an image, for --flops, --latency, the '
        'check and ONNX\n(default: 224, or 32 for a '
        'ResNet_CIFAR)')
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu',
        help='where to measure (default: cuda where there is '
        'one, else cpu)')
    add_common_flags(parser)
    return parser.parse_args(argv)


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


def main(argv=None):
    args = parse_args(argv)
    with errors_as_sentences('slice_checkpoint', args.debug):
        subnet = args.width
        for kind in COSTS:
            if getattr(args, kind) is not None:
                subnet = Budget.parse(kind, getattr(args, kind))
        report = slice_checkpoint(args.checkpoint, args.out, subnet,
                                  args.format, args.config, args.num_images,
                                  args.input_size, args.device,
                                  args.trust_pickle, args.cfg_options)
    if report.choice is not None:
        choice, show = report.choice, subnet.show
        print(f'{choice.subnet} takes {show(choice.cost)}' +
              (f'; {choice.next_subnet} would take '
               f'{show(choice.next_cost)}.' if choice.next_subnet else '.'))
    print(f'{describe_size(report.size)}.')
    statistics = report.meta['statistics']
    if not statistics.startswith('measured'):
        statistics = f'from {statistics}'
    print(f'{report.out}: {report.subnet} for {args.format}, features '
          f'{report.meta["feature_channels"][-1]}, statistics '
          f'{statistics}; largest difference from the '
          f'slimmable network {report.gap:.1e}.\n\n{report.usage}')


if __name__ == '__main__':
    main()
