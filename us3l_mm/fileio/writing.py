# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Writing files as a whole or not at all."""
import errno
import hashlib
import io
import os
import os.path as osp
import re
import shutil
from typing import Any, Callable, List, Sequence, Union

import torch
from mmengine.fileio import LocalBackend, register_backend

# A full disk, a full quota, a file longer than the process may write.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MEGABYTE = 1e6


def sha256(path: str) -> str:
    """Checksum of the file at ``path``, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def to_bytes(content: Any) -> bytes:
    """The bytes that ``torch.save`` writes for ``content``."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def save_atomically(content: Union[bytes, Any], path: str) -> None:
    """Write ``content`` to ``path``, as a whole or not at all.

    Args:
        content (bytes or Any): Bytes, or what ``torch.save`` can write.
        path (str): The file to write; its folder is created. An existing file
            stays as it is until the new one is on the disk.

    Raises:
        OSError: If it cannot be written, with the free space if the disk is
            full. Nothing is left behind then.
    """
    data = content if isinstance(content, bytes) else to_bytes(content)

    def write(temporary: str) -> None:
        with open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    try:
        write_atomically(path, write)
    except OSError as error:
        text = f'{path} was not written: {error.strerror or error}'
        if error.errno in DISK_FULL:
            folder = osp.dirname(osp.abspath(path))
            free = shutil.disk_usage(folder).free
            text += (f': it has {len(data) / MEGABYTE:,.1f} MB and {folder} '
                     f'has {free / MEGABYTE:,.1f} MB free')
        raise OSError(error.errno, text) from error


def write_atomically(path: str, write: Callable[[str], None]) -> None:
    """Let ``write`` fill a temporary file, and rename that to ``path``.

    Args:
        path (str): The file to write; its folder is created.
        write (callable): A function of the name of the temporary file, which
            is in the same folder and has the same extension.
    """
    _check_ordinary(path)
    folder = osp.dirname(osp.abspath(path))
    os.makedirs(folder, exist_ok=True)
    stem, extension = osp.splitext(osp.basename(path))
    temporary = osp.join(folder, f'.{stem}.{os.getpid()}{extension}')
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        if osp.exists(temporary):
            os.remove(temporary)
    # So that the name survives a loss of power.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_ordinary(path: str) -> None:
    """Refuse to replace a folder or a device, such as /dev/null."""
    if osp.exists(path) and not osp.isfile(path):
        raise FileExistsError(f'{path} is not an ordinary file: name a file '
                              'to write.')


def check_writable(path: str, source: str) -> None:
    """Refuse a target that cannot be written, before any long work.

    Raises:
        OSError, ValueError: If ``path`` is a folder or ``source``, or if its
            folder is a file or may not be written to.
    """
    if osp.exists(path) and osp.samefile(path, source):
        raise ValueError(f'{path} is the checkpoint that is read: name '
                         'another file to write.')
    _check_ordinary(path)
    folder = osp.dirname(osp.abspath(path))
    while not osp.lexists(folder):
        folder = osp.dirname(folder)
    if not osp.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            f'{path} cannot be written: {folder} is not a folder that you may '
            'write to.')


@register_backend('us3l_mm.whole_files', force=True)
class WholeFileBackend(LocalBackend):
    """MMEngine's backend of local files, whose writes are atomic.

    Whenever the process is killed, the target is the old file or the new one.
    """

    def put(self, obj: bytes, filepath) -> None:
        """Write ``obj`` to ``filepath``.

        Raises:
            OSError: If that fails. The old file is unchanged.
        """
        try:
            save_atomically(bytes(obj), str(filepath))
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise OSError(
                error.errno, f'{error.strerror}. Checkpoints that were '
                'written before are whole: make room and go on with --resume.'
            ) from error

    def put_text(self, obj: str, filepath, encoding: str = 'utf-8') -> None:
        """Write the text ``obj`` to ``filepath``."""
        self.put(obj.encode(encoding), filepath)


def remove_leftovers(folder: str, templates: Sequence[str]) -> List[str]:
    """Remove the temporary files of killed writes.

    Args:
        folder (str): The folder of the checkpoints of one run.
        templates (sequence[str]): Names of the files that the run writes;
            ``{}`` stands for anything.

    Returns:
        list[str]: The names of the removed files.
    """
    names = sorted(os.listdir(folder)) if osp.isdir(folder) else []
    patterns = []  # of the names that write_atomically gives them
    for template in templates:
        stem, extension = (re.escape(part).replace(r'\{\}', '.+')
                           for part in osp.splitext(template))
        patterns.append(rf'\.{stem}\.\d+{extension}')
    removed = [
        name for name in names if any(
            re.fullmatch(pattern, name) for pattern in patterns)]
    for name in removed:
        os.remove(osp.join(folder, name))
    return removed
