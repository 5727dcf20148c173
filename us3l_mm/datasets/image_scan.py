# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Which files of a folder are images that can be read.

The result is kept in ``$XDG_CACHE_HOME/us3l_mm/scans`` (``~/.cache`` by
default), so that a file is looked at again only when its size or its time of
modification has changed.
"""
import hashlib
import json
import logging
import os
import os.path as osp
from multiprocessing import Pool
from typing import Dict, Iterable, List, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
from mmengine.logging import print_log
from rich.progress import track

from us3l_mm.fileio import write_atomically
from .load_image import PILLOW_ERRORS, opened, printable

# Fewer files are read faster than processes start.
FEW = 256
MAX_PROCESSES = 8
# Bytes of the beginning and the end of a file that are read.
EDGE = 64
# Smaller images show nothing: a blank pixel of a web page, a separating line.
MIN_SIDE = 8
# Resized to a shorter side of 224 pixels, a longer image would fill memory.
MAX_RATIO = 50
# Of the rules here; with another one, files are looked at again.
VERSION = 2
# Pillow's names of integers and floats of 32 bits.
WIDE = ('I', 'F')
# How a complete file begins and ends.
EDGES = ((b'\xff\xd8\xff', b'\xff\xd9'), (b'\x89PNG\r\n\x1a\n',
                                          b'IEND\xaeB`\x82'))


def find_defects(root: str, names: Sequence[str]) -> Dict[str, str]:
    """The files that cannot be used as images, and why.

    Header and end of each file are read, and the checksums of a PNG file. It
    is decoded only if these do not show that a JPEG, PNG or WebP file is
    complete. Many files are read in several processes, with a progress bar.

    Args:
        root (str): The folder.
        names (sequence[str]): The files in it, as paths relative to ``root``.

    Returns:
        dict[str, str]: The reason for each file that cannot be used, in the
        order of ``names``.
    """
    stamps = {name: _stamp(osp.join(root, name)) for name in names}
    cache = _cache_file(root)
    known = _read_cache(cache)
    new = [name for name in names if known.get(name, [''])[0] != stamps[name]]
    if new:
        paths = [osp.join(root, name) for name in new]
        known.update((name, [stamps[name], defect])
                     for name, defect in zip(new, _scan(paths, root)))
        _write_cache(cache, {name: known[name] for name in names})
    return {name: known[name][1] for name in names if known[name][1]}


def find_defect(path: str) -> Optional[str]:
    """Why the file at ``path`` is not a complete image; None if it is one."""
    try:
        with open(path, 'rb') as file:
            head = file.read(EDGE)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - EDGE, 0))
            tail = file.read()
    except OSError as error:
        return f'cannot be opened ({error.strerror})'
    if not size:
        return 'empty'
    image_size = _size_if_complete(path, head, tail, size)
    if image_size is None:
        decoded = _decode(path)
        if isinstance(decoded, str):
            return decoded
        image_size = decoded.shape[:2]
    shorter, longer = sorted(image_size)
    if shorter < MIN_SIDE:
        return f'with a side of less than {MIN_SIDE} pixels'
    if longer > MAX_RATIO * shorter:
        return f'more than {MAX_RATIO} times as long as wide'
    return None


def _size_if_complete(path: str, head: bytes, tail: bytes,
                      size: int) -> Optional[Tuple[int, ...]]:
    """The sides of an image whose file begins and ends as it should.

    None if it does not, or if it is no JPEG, PNG or WebP file.
    """
    if head[:4] == b'RIFF' and head[8:12] == b'WEBP':
        complete = int.from_bytes(head[4:8], 'little') + 8 <= size
    else:
        complete = any(
            head.startswith(begin) and tail.rstrip(b'\0').endswith(end)
            for begin, end in EDGES)
    if not complete:
        return None
    try:
        with opened(path) as image:
            image.verify()  # the checksums of a PNG file
            return image.size
    except PILLOW_ERRORS:
        return None


def _decode(path: str) -> Union[np.ndarray, str]:
    """The pixels as OpenCV decodes them, or why it does not."""
    # OpenCV crashes on a name that is not valid UTF-8.
    if printable(path) == path and not cv2.haveImageReader(path):
        return f'of no format that OpenCV reads ({osp.splitext(path)[1]})'
    level = cv2.setLogLevel(0)  # it would print what is returned here
    try:
        decoded = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        decoded = None
    finally:
        cv2.setLogLevel(level)
    if decoded is not None:
        return decoded
    try:
        with opened(path) as image:
            if image.mode in WIDE:
                return 'with pixels of 32 bits, which OpenCV does not read'
    except PILLOW_ERRORS:
        pass
    return 'damaged or cut off'


def _scan(paths: List[str], root: str) -> List[Optional[str]]:
    if len(paths) < FEW:
        return list(map(find_defect, paths))
    processes = min(MAX_PROCESSES, os.cpu_count() or 1)
    with Pool(processes) as pool:
        found: Iterable = pool.imap(find_defect, paths, chunksize=64)
        return list(track(found, f'Checking {root}', total=len(paths)))


def _stamp(path: str) -> Optional[str]:
    """Size and time of modification; None if there is no such file."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return f'{stat.st_size} {stat.st_mtime_ns}'


def _cache_file(root: str) -> str:
    home = os.environ.get('XDG_CACHE_HOME') or osp.expanduser('~/.cache')
    # Another version may read other formats.
    key = f'{VERSION} {cv2.__version__} {osp.realpath(root)}'
    digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:16]
    return osp.join(home, 'us3l_mm', 'scans', f'{digest}.json')


def _read_cache(path: str) -> Dict[str, list]:
    try:
        with open(path) as file:
            content = json.load(file)
    except (OSError, ValueError):  # none yet, or a damaged one
        return {}
    return content if isinstance(content, dict) else {}


def _write_cache(path: str, content: dict) -> None:

    def write(name: str) -> None:
        with open(name, 'w') as file:
            json.dump(content, file)

    try:
        write_atomically(path, write)
    except OSError as error:
        print_log(
            f'{path} cannot be written ({error.strerror}), so the next run '
            'will check the images again. Set XDG_CACHE_HOME to a folder that '
            'you may write to.', 'current', logging.WARNING)
