# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Rows that come batch by batch, in memory or, if they are many, on a disk."""
import errno
import shutil
from tempfile import SpooledTemporaryFile, gettempdir
from typing import Iterable

import numpy as np

# Bytes of a set of rows that are kept in memory.
MAX_IN_MEMORY = 2**28
GIGABYTE = 1e9
ADVICE = ('Set the environment variable TMPDIR to a folder with more space, '
          'or evaluate fewer sub-networks at a time.')


class Spool:
    """Collects rows, and makes one array of them.

    Rows of more than 256 MiB are in a temporary file, and their array is a
    memory map, of which the system keeps in memory what is used and what there
    is room for. The file is in the folder for temporary files (``TMPDIR``),
    and is deleted with the array.
    """

    def __init__(self) -> None:
        self.file = SpooledTemporaryFile(max_size=MAX_IN_MEMORY)
        self.last, self.length = np.empty(0), 0

    def add(self, rows: np.ndarray) -> None:
        """Append rows, (N, ...); all have the same type and shape.

        Raises:
            OSError: If the disk is full.
        """
        self.last, self.length = rows[:0], self.length + len(rows)
        try:
            self.file.write(np.ascontiguousarray(rows).data)
        except OSError as error:
            raise OSError(
                error.errno, f'{error.strerror}: features are written to '
                f'{gettempdir()}. {ADVICE}') from error

    def array(self) -> np.ndarray:
        """All rows. Nothing can be added afterwards."""
        shape = (self.length, *self.last.shape[1:])
        dtype, size = self.last.dtype, self.file.tell()
        self.file.seek(0)
        if size > MAX_IN_MEMORY:
            rows = np.memmap(self.file, dtype, 'r+', shape=shape)
        else:
            rows = np.frombuffer(bytearray(self.file.read()),
                                 dtype).reshape(shape)
        self.file.close()  # the map stays
        return rows


def check_space(images: int, channels: Iterable[int]) -> None:
    """Raise OSError unless the disk has room for features.

    Args:
        images (int): Number of images.
        channels (iterable[int]): For each set of features, float32 numbers
            of an image.
    """
    sizes = [4 * images * count for count in channels]
    needed = sum(size for size in sizes if size > MAX_IN_MEMORY)
    folder = gettempdir()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC, f'The features of {images:,} images take '
            f'{needed / GIGABYTE:,.1f} GB, and {folder} has '
            f'{free / GIGABYTE:,.1f} GB free. {ADVICE}')
