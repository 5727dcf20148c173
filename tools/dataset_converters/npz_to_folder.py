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
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable, Dict, Iterable, List, Optional, Tuple, Union
from zipfile import BadZipFile

import numpy as np
from PIL import Image
from rich.progress import track

SPLITS = ('train', 'test')
SUFFIXES = {b'\xff\xd8\xff': '.jpg', b'\x89PNG': '.png'}
# A name that is one folder on any system, and no hidden one
SAFE_NAME = re.compile(r"\w([\w .,'&()+-]*[\w)+])?")


@dataclass
class Split:
    """The images of one split.

    Attributes:
        encoded (callable): From an index to the bytes of an image file.
        labels (ndarray): Their classes, (count,) integers.
    """

    encoded: Callable[[int], bytes]
    labels: np.ndarray


def npz_to_folder(source: Union[str, Path], target: Union[str, Path],
                  track: Optional[Callable[[Iterable, str], Iterable]] = None
                  ) -> Dict[str, int]:
    """Write ``target/<split>/<class>/<index>.<suffix>`` for every image.

    Encoded images are written as they are, pixels as PNG. All is checked
    first, and a broken-off run leaves nothing behind.

    Args:
        source (str or Path): The .npz file.
        target (str or Path): The folder to make; it must not exist.
        track (callable, optional): Wraps the indices of a split to show
            progress, given a description, like ``rich.progress.track``.
            Defaults to None.

    Returns:
        dict[str, int]: How many images each split has.

    Raises:
        FileExistsError: if ``target`` exists.
        FileNotFoundError: if ``source`` does not.
        ValueError: if ``source`` is not such a file; the message says why.
    """
    target = Path(target)
    if os.path.lexists(target):
        raise FileExistsError(
            f'{target} exists already. Name a new folder, or remove it.')
    splits, names = read_npz(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f'.{target.name}-',
                            dir=target.parent) as scratch:
        root = Path(scratch, 'images')
        for split_name, split in splits.items():
            indices: Iterable[int] = range(len(split.labels))
            if track is not None:
                indices = track(indices, split_name)
            write_split(root / split_name, split, names, indices)
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


def read_npz(path: Union[str, Path]) -> Tuple[Dict[str, Split], List[str]]:
    """The splits and the class names of a file, checked."""
    arrays = load_arrays(path)
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
    return splits, class_names(arrays, highest + 1)


def load_arrays(path: Union[str, Path]) -> Dict[str, np.ndarray]:
    """All arrays of an .npz file, without ever unpickling."""
    if not Path(path).is_file():
        raise FileNotFoundError(f'There is no file {path}.')
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file}
    except (AttributeError, TypeError, BadZipFile):
        # A .npy file is loaded as an array, which is no context.
        raise ValueError(f'{path} is not an .npz file.') from None
    except (EOFError, ValueError) as error:
        raise ValueError(
            f'{path} is not an .npz file of plain arrays: {error}') from None


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
    return Split(lambda i: blob[off[i]:off[i + 1]].tobytes(),
                 labels_of(arrays, name, off.size - 1))


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
            f'{unsafe or names}.')
    return names


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
