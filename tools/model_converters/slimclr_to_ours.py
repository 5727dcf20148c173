# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Convert a file of the authors' SlimCLR code.

Read are pre-training files of MoCo v2, MoCo v3 and SimCLR, and linear probes.
The result holds the whole algorithm, or the classifiers: every width with its
own batch norms, projector, predictor, queue, and the full width of the
momentum encoder as the teacher. Its config is stored in the file.
"""
import argparse
import os.path as osp

from us3l_mm.apis.command_line import add_common_flags, errors_as_sentences
from us3l_mm.export.slimclr_checkpoints import from_slimclr
from us3l_mm.fileio import (check_writable, load_weights, save_atomically,
                            sha256)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('checkpoint', help='checkpoint of the authors')
    parser.add_argument('out', help='file to write')
    parser.add_argument('--backbone-only', action='store_true',
                        help="convert the student's backbone and nothing else")
    add_common_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with errors_as_sentences('slimclr_to_ours', args.debug):
        check_writable(args.out, args.checkpoint)
        converted = from_slimclr(
            load_weights(args.checkpoint, args.trust_pickle),
            args.backbone_only)
        save_atomically(
            converted.checkpoint(
                dict(file=osp.basename(args.checkpoint), sha256=sha256(
                    args.checkpoint), converted_by='slimclr_to_ours')),
            args.out)
    print(f'{args.out}: {converted.summary()}')


if __name__ == '__main__':
    main()
