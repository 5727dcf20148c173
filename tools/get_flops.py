# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Parameters and multiply-accumulates of a model, part by part and by width.
"""
import argparse
import sys

from rich.console import Console
from rich.table import Table

from us3l_mm.apis.command_line import (OptionsAction, add_common_flags,
                                       errors_as_sentences, subnet_argument)
from us3l_mm.apis.launching import check_config, load_config
from us3l_mm.evaluation.parts import COUNTED, count_config


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Example: python tools/get_flops.py configs/us3l/detection/'
        'mask-rcnn_r50_fpn_ms-1x_coco.py --input-size 800 1333 --widths 1.0 '
        '0.5 0.25')
    parser.add_argument(
        'config', help='config of a detector, a classifier or '
        'a pre-training')
    parser.add_argument(
        '--input-size', '--shape', dest='shape', type=int, nargs='+',
        metavar='PX', help='height and width of the image, or its side; '
        'default: 800 1333 for a detector, else 224')
    parser.add_argument(
        '--widths', type=subnet_argument, nargs='+', metavar='W',
        help='default: the width of the config, or both ends '
        'of the range of a slimmable network')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction,
                        metavar='KEY=VALUE', help='changes to the config')
    add_common_flags(parser)
    args = parser.parse_args(argv)
    if args.shape and (len(args.shape) > 2 or min(args.shape) < 1):
        parser.error(f'--input-size takes one or two sizes, got {args.shape}.')
    return args


def table_of(parts_of: dict, shape: tuple, name: str) -> Table:
    """A row for each sub-network, with the size of each part."""
    parts = next(iter(parts_of.values()))
    repeats = [
        f'{part.name} on {part.times} regions' for part in parts
        if part.times > 1]
    table = Table(
        title=f'{name}, {shape[0]} x {shape[1]} pixels', caption=' '.join([
            COUNTED, ', '.join(repeats) + '.' if repeats else '']).strip())
    table.add_column('subnet', justify='right')
    for title in [*(part.name for part in parts), 'total']:
        table.add_column(f'{title}\nparams (M)', justify='right')
        table.add_column(f'{title}\nGMACs', justify='right')
    for subnet, parts in parts_of.items():
        sizes = [(part.params, part.macs) for part in parts]
        sizes.append(tuple(map(sum, zip(*sizes))))
        table.add_row(
            str(subnet),
            *(text for params, macs in sizes
              for text in (f'{params / 1e6:.3f}', f'{macs / 1e9:.3f}')))
    return table


def main(argv=None):
    args = parse_args(argv)
    with errors_as_sentences('get_flops', args.debug):
        config = load_config(args.config, args.cfg_options)
        if 'model' not in config:
            raise ValueError(f'{args.config} has no model. Give the config of '
                             'a training.')
        check_config(config, ())
        shape = args.shape or ([800, 1333] if config.get('default_scope')
                               == 'mmdet' else [224])
        shape = tuple(shape * 2 if len(shape) == 1 else shape)
        parts_of = count_config(config, shape, args.widths)
    table = table_of(parts_of, shape, str(args.config))
    # All of it, also where the output is a file.
    width = None if sys.stdout.isatty() else 200
    Console(width=width).print(table)


if __name__ == '__main__':
    main()
