# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Turn a data set in one .npz file into a folder of images."""
import argparse
import sys

from rich.progress import track

from us3l_mm.datasets.converters import npz_to_folder


def parse_args():
    parser = argparse.ArgumentParser(
        description='Turn a data set in one .npz file into a folder of '
        'images, DST/{train,test}/<class>/<index>.<suffix>, which the '
        "-folder configs and MMPretrain's CustomDataset read.",
        epilog='The file holds, for the split train or test or both, either '
        'x_train, (N, H, W, 3) RGB or (N, H, W) grey pixels, uint8 (written '
        'as PNG); or blob_train, the bytes of all JPEG or PNG files, and '
        'off_train, (N + 1,) where each begins (written as they are). And '
        'y_train, (N,) integer labels, and if you like class_names, strings.')
    parser.add_argument('src', metavar='SRC.npz', help='the file')
    parser.add_argument('dst', metavar='DST', help='the folder to make; it '
                        'must not exist')
    return parser.parse_args()


def main():
    args = parse_args()
    try:
        counts = npz_to_folder(args.src, args.dst, track)
    except (FileExistsError, FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    images = ', '.join(f'{n} {split}' for split, n in counts.items())
    print(f'{args.dst}: {images} images')


if __name__ == '__main__':
    main()
