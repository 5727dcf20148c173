# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Pre-train on a folder of your own images, without labels.

Number and size of the images decide about crops, network, batch, epochs and
learning rate, unless you do. The config is kept in the folder of the run; to
change more of it, edit a copy and start it by `us3l train`.
"""
import argparse

import train
from us3l_mm.apis.command_line import (OptionsAction, add_common_flags,
                                       errors_as_sentences)
from us3l_mm.apis.own_images import ARCHS, METHODS, write_config

EXAMPLE = """examples:
  us3l pretrain photos --out run
  us3l pretrain photos --out run --method slimclr --arch resnet50
  us3l pretrain photos --out run --resume"""


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE,
        formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('images', help='folder of images, at any depth of it')
    parser.add_argument('--out', required=True, metavar='RUN',
                        help='folder of config, logs and checkpoints')
    parser.add_argument(
        '--method', default='us3l', choices=METHODS,
        help='us3l: any width (default); slimclr: a list of widths, without '
        'calibration;\ngated: one network, dense or gated for each image')
    parser.add_argument(
        '--arch', choices=ARCHS, metavar='NETWORK',
        help=f'one of {", ".join(ARCHS)};\ndefault: resnet18, and resnet50 '
        'for more than 200,000 images')
    parser.add_argument(
        '--image-size', type=int, metavar='PX',
        help='side of a crop; default: by the size of the images, at most 224')
    parser.add_argument(
        '--epochs', type=int, metavar='N',
        help='default: 100 to 400, the more the fewer images there are')
    parser.add_argument('--batch-size', type=int, metavar='N',
                        help='default: up to 128, by the number of images')
    parser.add_argument('--resume', action='store_true',
                        help='go on with the run in --out')
    parser.add_argument(
        '--amp', action='store_true',
        help='mixed precision: float16 on a GPU, bfloat16 on a CPU')
    parser.add_argument('--dry-run', action='store_true',
                        help='write the config and stop')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction,
                        metavar='KEY=VALUE',
                        help='other changes to the config')
    add_common_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with errors_as_sentences('pretrain', args.debug):
        path = write_config(args.images, args.out, args.method, args.arch,
                            args.image_size, args.epochs, args.batch_size,
                            args.resume, args.cfg_options)
    if args.dry_run:
        return
    flags = ['--work-dir', args.out]
    for name in ('resume', 'amp', 'debug', 'trust_pickle'):
        if getattr(args, name):
            flags.append(f'--{name.replace("_", "-")}')
    train.main([path, *flags])


if __name__ == '__main__':
    main()
