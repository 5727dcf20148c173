# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Turn a data set in one .npz file into a folder of images.

Two layouts are understood, for the splits ``train`` and ``test`` (one of them
may be absent):

* encoded: ``blob_train``, all files behind one another as bytes; image i is
  ``blob[off_train[i]:off_train[i + 1]]``, a JPEG or a PNG;
* pixels: ``x_train``, (N, H, W, 3) RGB or (N, H, W) grey, uint8.

Both have labels ``y_train``, (N,) integers from 0, and may have
``class_names``, (classes,) strings.
"""
import argparse
import io
import os
import re
import shutil
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable, Dict, Iterable, List, Optional, Tuple, Union
from zipfile import BadZipFile, ZipFile

import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.progress import track

from us3l_mm.apis.command_line import errors_as_sentences
from us3l_mm.fileio import check_writable

SPLITS = ('train', 'test')
ARRAYS = ('class_names', *(f'{name}_{split}'
                           for name in ('blob', 'off', 'x', 'y')
                           for split in SPLITS))
GIB = 2**30
# Such as ImageNet-21k has.
MAX_CLASSES = 25_000
# Bytes that a file system allows in a name.
MAX_NAME = 255
# What Pillow raises on an image that is damaged or has too many pixels.
UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
SUFFIXES = {b'\xff\xd8\xff': '.jpg', b'\x89PNG': '.png'}
# A name that is one folder on any system, and no hidden one
SAFE_NAME = re.compile(r"\w([\w .,'&()+-]*[\w)+])?")


@dataclass
class Split:
    """The images of one split.

    Attributes:
        encoded (callable): From an index to the bytes of an image file.
        labels (ndarray): Their classes, (count,) integers.
        size (int): The bytes of all image files, if they are known, else 0.
    """

    encoded: Callable[[int], bytes]
    labels: np.ndarray
    size: int = 0


def npz_to_folder(source: Union[str, Path], target: Union[str, Path],
                  track: Optional[Callable[[Iterable, str], Iterable]] = None,
                  max_bytes: int = 32 * GIB,
                  max_classes: int = MAX_CLASSES) -> Dict[str, int]:
    """Write ``target/<split>/<class>/<index>.<suffix>`` for every image.

    Encoded images are decoded as a check and written as they are, pixels are
    written as PNG. Sizes, types and names are checked before anything is
    written, and a run that fails or is interrupted leaves nothing behind.

    Args:
        source (str or Path): The .npz file.
        target (str or Path): The folder to make; it must not exist.
        track (callable, optional): Wraps the indices of a split to show
            progress, given a description, like ``rich.progress.track``.
            Defaults to None.
        max_bytes (int): The size of all arrays together that is accepted.
            They are read into memory. Defaults to 32 GiB.
        max_classes (int): The number of classes that is accepted, each of
            which becomes a folder. Defaults to 25,000.

    Returns:
        dict[str, int]: How many images each split has.

    Raises:
        FileExistsError: If ``target`` exists.
        FileNotFoundError: If ``source`` does not.
        OSError: If the folder cannot be written, or the disk is too small.
        ValueError: If ``source`` is not such a file; the message says why.
    """
    target = Path(target)
    if os.path.lexists(target):
        raise FileExistsError(
            f'{target} exists already. Name a new folder, or remove it.')
    splits, names = read_npz(source, max_bytes, max_classes)
    check_writable(str(target), str(source))
    # Made at the end, so that a failure leaves no empty folders.
    parent = target.absolute().parent
    folder = next(path for path in (parent, *parent.parents) if path.exists())
    needed, free = (sum(split.size for split in splits.values()),
                    shutil.disk_usage(folder).free)
    if needed > free:
        raise OSError(
            f'The images of {source} take {needed / GIB:.1f} GiB, and the '
            f'disk of {folder} has {free / GIB:.1f} GiB left: make room, or '
            'name a folder on another disk.')
    with TemporaryDirectory(prefix='.images-', dir=folder) as scratch:
        root = Path(scratch, 'images')
        for split_name, split in splits.items():
            indices: Iterable[int] = range(len(split.labels))
            if track is not None:
                indices = track(indices, split_name)
            write_split(root / split_name, split, names, indices)
        parent.mkdir(parents=True, exist_ok=True)
        root.rename(target)
    return {name: len(split.labels) for name, split in splits.items()}


def write_split(folder: Path, split: Split, names: List[str],
                indices: Iterable[int]) -> None:
    """Write the images of a split below ``folder``, a folder per class."""
    for name in names:
        # Classes without images too: the classes of all splits must agree.
        (folder / name).mkdir(parents=True)
    digits = len(str(len(split.labels) - 1))
    for index in indices:
        data = split.encoded(index)
        path = folder / names[split.labels[index]] / (
            f'{index:0{digits}d}{suffix_of(data)}')
        path.write_bytes(data)


def check_decodes(data: bytes, what: str) -> None:
    """Raise ValueError unless ``data`` is a whole image."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft('RGB', (1, 1))  # a JPEG is decoded at 1/8
            image.load()
    except UNDECODABLE as error:
        reason = ('it has no valid header' if isinstance(
            error, UnidentifiedImageError) else error)
        raise ValueError(f'The image {what} cannot be decoded ({reason}). '
                         'Replace it in the file.') from None


def read_npz(path: Union[str, Path], max_bytes: int,
             max_classes: int) -> Tuple[Dict[str, Split], List[str]]:
    """The splits and the class names of a file, checked."""
    arrays = load_arrays(path, max_bytes)
    splits = {}
    for name in SPLITS:
        if f'blob_{name}' in arrays:
            splits[name] = encoded_split(arrays, name)
        elif f'x_{name}' in arrays:
            splits[name] = pixel_split(arrays, name)
    if not splits:
        raise ValueError(
            f'{path} has neither blob_train (encoded images) nor x_train '
            f'(pixels), nor those of a test split; it has {sorted(arrays)}.')
    highest = max(int(split.labels.max()) for split in splits.values())
    names = arrays.get('class_names', np.array([]))
    count = max(highest + 1, names.size)
    if count > max_classes:
        raise ValueError(
            f'{path} has {count:,} classes (labels up to {highest:,}), each '
            f'of which would become a folder; at most {max_classes:,} are '
            'accepted. If the labels are right, raise --max-classes.')
    return splits, class_names(arrays, highest + 1)


def load_arrays(path: Union[str, Path],
                max_bytes: int) -> Dict[str, np.ndarray]:
    """The known arrays of an .npz file, without ever unpickling.

    Their sizes are added up before the first one is read. Of other arrays
    only the names are returned, with empty arrays.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'There is no file {path}.')
    try:
        with ZipFile(path) as archive:
            total = sum(
                size_of(archive, name) for name in archive.namelist()
                if name.removesuffix('.npy') in ARRAYS)
        if total <= max_bytes:
            with np.load(path, allow_pickle=False) as file:
                return {
                    key: file[key] if key in ARRAYS else np.array([])
                    for key in file}
    except (BadZipFile, EOFError, NotImplementedError, RuntimeError,
            ValueError, zlib.error) as error:
        raise ValueError(f'{path} is not an .npz file of plain arrays, or is '
                         f'damaged: {error}') from None
    raise ValueError(
        f'The arrays of {path} take {total / GIB:,.1f} GiB of memory; at most '
        f'{max_bytes / GIB:g} GiB are accepted. If the file is what you expect'
        ' and the memory suffices, raise --max-gib.')


def size_of(archive: ZipFile, name: str) -> int:
    """The bytes of an array in memory, by its header.

    Raises:
        ValueError: If it is not a plain array, or has fewer bytes in the file.
    """
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read_header = (np.lib.format.read_array_header_1_0 if version == (1, 0)
                       else np.lib.format.read_array_header_2_0)
        shape, _, dtype = read_header(file)
        stored = archive.getinfo(name).file_size - file.tell()
    size = prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise ValueError(f'{name} holds Python objects.')
    if size != stored:
        raise ValueError(f'{name} has {stored:,} bytes of data, and its header'
                         f' says {dtype} of shape {shape}.')
    return size


def encoded_split(arrays: Dict[str, np.ndarray], name: str) -> Split:
    """A split of encoded images; see the module."""
    blob, off = arrays[f'blob_{name}'], needed(arrays, f'off_{name}')
    if blob.ndim != 1 or blob.dtype != np.uint8:
        raise ValueError(f'blob_{name} is bytes, (size,) uint8, got '
                         f'{blob.shape} {blob.dtype}.')
    if (off.ndim != 1 or off.size < 2 or off.dtype.kind not in 'iu'
            or off[0] < 0 or off[-1] > blob.size
            or not (off[1:] > off[:-1]).all()):
        raise ValueError(
            f'off_{name} is where the images begin and the last one ends, '
            f'(N + 1,) rising integers within the {blob.size} bytes of '
            f'blob_{name}; got {off.shape} {off.dtype}: {off[:3]}...'
            f'{off[-2:]}.')
    for index in range(off.size - 1):
        suffix_of(blob[off[index]:off[index] + 4].tobytes(), f'{name} {index}')

    def encoded(index: int) -> bytes:
        data = blob[off[index]:off[index + 1]].tobytes()
        check_decodes(data, f'{name} {index}')
        return data

    return Split(encoded, labels_of(arrays, name, off.size - 1),
                 int(off[-1] - off[0]))


def pixel_split(arrays: Dict[str, np.ndarray], name: str) -> Split:
    """A split of pixels; see the module."""
    x = arrays[f'x_{name}']
    if (x.dtype != np.uint8 or not x.size
            or not (x.ndim == 3 or (x.ndim == 4 and x.shape[3] == 3))):
        raise ValueError(
            f'x_{name} is images, (N, H, W, 3) or (N, H, W) uint8, got '
            f'{x.shape} {x.dtype}.')

    def encoded(index: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(x[index]).save(file, format='PNG')
        return file.getvalue()

    return Split(encoded, labels_of(arrays, name, len(x)))


def labels_of(arrays: Dict[str, np.ndarray], name: str,
              count: int) -> np.ndarray:
    """The labels of a split of ``count`` images."""
    y = needed(arrays, f'y_{name}')
    if y.shape != (count, ) or y.dtype.kind not in 'iu' or y.min() < 0:
        raise ValueError(
            f'y_{name} is a class per image, ({count},) integers from 0, got '
            f'{y.shape} {y.dtype}.')
    return y


def class_names(arrays: Dict[str, np.ndarray], least: int) -> List[str]:
    """Names of at least ``least`` classes; numbers where there are none."""
    if 'class_names' not in arrays:
        digits = len(str(least - 1))
        return [f'{index:0{digits}d}' for index in range(least)]
    names = arrays['class_names']
    if names.ndim != 1 or names.dtype.kind != 'U':
        raise ValueError(f'class_names is (classes,) strings, got '
                         f'{names.shape} {names.dtype}.')
    names = names.tolist()
    if len(names) < least:
        raise ValueError(f'There are labels up to {least - 1}, and '
                         f'{len(names)} class_names.')
    unsafe = [name for name in names if not SAFE_NAME.fullmatch(name)]
    if unsafe or len({*map(str.lower, names)}) < len(names):
        raise ValueError(
            'class_names become folders: different names of letters, digits, '
            f"blanks and _.,'&()+- that begin with a letter or digit; got "
            f'{some(unsafe or names)}.')
    longest = max(names, key=lambda name: len(os.fsencode(name)))
    if len(os.fsencode(longest)) > MAX_NAME:
        raise ValueError(
            f'class_names become folders, whose names have at most {MAX_NAME} '
            f'bytes; {longest[:20]}... has {len(os.fsencode(longest))}.')
    return names


def some(names: List[str]) -> str:
    """The first of ``names``, each without its end if it is long."""
    shown = ', '.join(repr(name[:40]) for name in names[:5])
    return shown + (f' and {len(names) - 5} more' if len(names) > 5 else '')


def needed(arrays: Dict[str, np.ndarray], key: str) -> np.ndarray:
    """The array called ``key``, or an error that lists what there is."""
    if key not in arrays:
        raise ValueError(f'The file has no {key}; it has {sorted(arrays)}.')
    return arrays[key]


def suffix_of(data: bytes, what: str = 'an image') -> str:
    """The suffix of a file by its first bytes."""
    for magic, suffix in SUFFIXES.items():
        if data.startswith(magic):
            return suffix
    raise ValueError(f'{what} is neither a JPEG nor a PNG; it begins with '
                     f'{data[:4]!r}.')


def parse_args(argv=None):
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
    parser.add_argument(
        '--max-gib', type=float, default=32, metavar='N',
        help='refuse a file whose arrays take more memory than this many GiB '
        '(default: 32)')
    parser.add_argument('--max-classes', type=int, default=MAX_CLASSES,
                        metavar='N',
                        help=f'refuse more classes (default: {MAX_CLASSES})')
    parser.add_argument('--debug', action='store_true',
                        help='show the whole traceback of an error')
    args = parser.parse_args(argv)
    for name in ('max_gib', 'max_classes'):
        if not getattr(args, name) > 0:
            parser.error(f'--{name.replace("_", "-")} is above 0, got '
                         f'{getattr(args, name)}.')
    return args


def main(argv=None):
    args = parse_args(argv)
    with errors_as_sentences('npz_to_folder', args.debug):
        counts = npz_to_folder(args.src, args.dst, track,
                               int(args.max_gib * GIB), args.max_classes)
    images = ', '.join(f'{n} {split}' for split, n in counts.items())
    print(f'{args.dst}: {images} images')


if __name__ == '__main__':
    main()
