# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Convert a pre-training file of the authors' US3L code.

The result holds the whole algorithm: the student's backbone, projector,
predictor and distillation head, and the momentum encoder as the teacher. Read
are ResNets, MobileNetV2 and vision transformers. The config of this network is
stored in the file, with the biases that its linear layers have.
"""
import argparse
import os.path as osp

from us3l_mm.apis.command_line import (add_common_flags, errors_as_sentences)
from us3l_mm.export.us3l_checkpoints import METHODS, STEMS, from_us3l
from us3l_mm.fileio import (check_writable, load_weights, save_atomically,
                            sha256)
from us3l_mm.models.layers import Subnet


def width_and_file(text):
    width, separator, path = text.partition('=')
    try:
        if separator and path:
            return Subnet(float(width)).width, path
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(
        'WIDTH=FILE with a width in (0, 1], such as '
        f'0.5=checkpoint_width_0.5.pth.tar, got {text!r}')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('checkpoint', help='checkpoint.pth.tar of the authors')
    parser.add_argument('out', help='file to write')
    parser.add_argument(
        '--statistics', nargs='+', default=[], type=width_and_file,
        metavar='W=FILE', help="files of the authors' calibrate.py, to take "
        'over the\nbatch-norm statistics of their widths')
    parser.add_argument(
        '--method', choices=list(METHODS),
        help='base method (default: the one that the predictors tell;\n'
        'files of SimSiam with a momentum teacher look like those of\n'
        'SimCLR or BYOL, so that it must be given)')
    parser.add_argument(
        '--stem', choices=STEMS,
        help='strides of a MobileNetV2, which weights do not show\n'
        '(default: what the file or the base method tells)')
    parser.add_argument('--backbone-only', action='store_true',
                        help="convert the student's backbone and nothing else")
    add_common_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with errors_as_sentences('us3l_to_ours', args.debug):
        check_writable(args.out, args.checkpoint)
        converted = from_us3l(
            load_weights(args.checkpoint, args.trust_pickle), {
                width: load_weights(path, args.trust_pickle)['state_dict']
                for width, path in args.statistics}, args.method, args.stem,
            args.backbone_only)
        save_atomically(
            converted.checkpoint(
                dict(file=osp.basename(args.checkpoint), sha256=sha256(
                    args.checkpoint), converted_by='us3l_to_ours')), args.out)
    print(f'{args.out}: {converted.summary()}')


if __name__ == '__main__':
    main()
