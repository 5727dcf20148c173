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
import warnings
from multiprocessing import Pool
from typing import Dict, Iterable, List, Optional, Sequence

import cv2
import numpy as np
from mmengine.logging import print_log
from PIL import Image
from rich.progress import track

from us3l_mm.fileio import write_atomically

# Fewer files are read faster than processes start.
FEW = 256
MAX_PROCESSES = 8
# Bytes of the beginning and the end of a file that are read.
EDGE = 64
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
    if _looks_complete(path, head, tail, size):
        return None
    foreign = f'of no format that OpenCV reads ({osp.splitext(path)[1]})'
    # OpenCV crashes on a name that is not valid UTF-8.
    if _is_unicode(path) and not cv2.haveImageReader(path):
        return foreign
    level = cv2.setLogLevel(0)  # it would print what is returned here
    try:
        decoded = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        decoded = None
    finally:
        cv2.setLogLevel(level)
    return None if decoded is not None else 'damaged or cut off'


def _looks_complete(path: str, head: bytes, tail: bytes, size: int) -> bool:
    """Whether a file begins and ends as JPEG, PNG and WebP files do."""
    if head[:4] == b'RIFF' and head[8:12] == b'WEBP':
        complete = int.from_bytes(head[4:8], 'little') + 8 <= size
    else:
        complete = any(
            head.startswith(begin) and tail.rstrip(b'\0').endswith(end)
            for begin, end in EDGES)
    if not complete:
        return False
    try:
        with warnings.catch_warnings():  # of a large image
            warnings.simplefilter('ignore')
            with Image.open(path) as image:
                image.verify()  # the checksums of a PNG file
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True


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
    key = f'{cv2.__version__} {osp.realpath(root)}'
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


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
