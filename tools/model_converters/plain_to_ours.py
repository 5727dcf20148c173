# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Convert an ordinary ResNet of MMPretrain, torchvision or the like.

The result is slimmable; at full width it computes what the ordinary network
does, with its statistics.
"""
import argparse
import os.path as osp

from us3l_mm.apis.command_line import (add_common_flags, errors_as_sentences)
from us3l_mm.fileio import (check_writable, load_weights, save_atomically,
                            sha256)
from us3l_mm.export.foreign import from_plain


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('checkpoint', help='file of the ordinary network')
    parser.add_argument('out', help='file to write')
    parser.add_argument(
        '--prefix', help='of its keys, such as backbone. '
        '(default: the one that is found)')
    parser.add_argument(
        '--style', choices=['pytorch', 'caffe'], default='pytorch',
        help='caffe: bottlenecks stride in '
        'their first convolution (default: pytorch)')
    add_common_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with errors_as_sentences('plain_to_ours', args.debug):
        check_writable(args.out, args.checkpoint)
        converted = from_plain(
            load_weights(args.checkpoint, args.trust_pickle)['state_dict'],
            args.prefix, args.style)
        save_atomically(
            converted.checkpoint(
                dict(file=osp.basename(args.checkpoint), sha256=sha256(
                    args.checkpoint), converted_by='plain_to_ours')), args.out)
    print(f'{args.out}: {converted.arguments}.')
    print('Left out:', ', '.join(converted.left_out) or 'nothing')


if __name__ == '__main__':
    main()
