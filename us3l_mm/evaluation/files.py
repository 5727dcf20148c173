# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import hashlib
import os
import os.path as osp
import tempfile
from typing import Callable


def write_atomically(path: str, write: Callable[[str], None]) -> None:
    """Let ``write`` fill a temporary file, and only then call it ``path``.

    Whatever goes wrong in the middle, ``path`` is what it was before.

    Args:
        path (str): The file to write; its folder is created.
        write (callable): Takes the name of the temporary file, which lies in
            the same folder and has the same extension.
    """
    folder = osp.dirname(osp.abspath(path))
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
        dir=folder, prefix='.', suffix=osp.splitext(path)[1])
    os.close(handle)
    try:
        write(temporary)
        # mkstemp makes files that only their owner may read.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        if osp.exists(temporary):
            os.remove(temporary)


def check_writable(path: str) -> None:
    """Raise OSError, saying so, unless a file ``path`` can be written."""
    try:
        if osp.isdir(path):
            raise IsADirectoryError('it is a folder')
        folder = osp.dirname(osp.abspath(path))
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f'{path} cannot be written: {error.strerror or error}. '
                      'Choose another place.') from None


def file_sha256(path: str) -> str:
    """Checksum of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
