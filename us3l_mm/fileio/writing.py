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
    """What ``torch.save`` writes for ``content``."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def save_atomically(content: Union[bytes, Any], path: str) -> None:
    """Write ``content`` to ``path``, as a whole or not at all.

    Args:
        content (bytes or Any): Bytes as they are; all else by ``torch.save``.
        path (str): Where to; its folder is created. A file that is there
            stays what it is until the new one lies on the disk.

    Raises:
        OSError: if it cannot be written; nothing is left behind then.
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
        raise OSError(error.errno, f'{path} was not written: '
                      f'{error.strerror or error}') from error


def write_atomically(path: str, write: Callable[[str], None]) -> None:
    """Let ``write`` fill a temporary file, and only then call it ``path``.

    Args:
        path (str): The file to write; its folder is created.
        write (callable): Takes the name of the temporary file, which lies in
            the same folder and has the same extension.
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
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """Make the names in ``folder`` survive a loss of power."""
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
    """Refuse, before any long work, a target that cannot be written.

    Raises:
        OSError, ValueError: if ``path`` is a folder, lies under something
            that is none or that may not be written to, or is ``source``.
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

    The bytes go into a file beside the target, reach the disk, and only then
    take the target's name. Whenever the process is killed, the target is the
    old file or the new one.
    """

    def put(self, obj: bytes, filepath) -> None:
        """Write ``obj`` to ``filepath``.

        Raises:
            OSError: if that fails; names the file and, where the disk is
                full, the space that is left. The old file is untouched.
        """
        path = str(filepath)
        try:
            save_atomically(bytes(obj), path)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise OSError(
                error.errno, f'{error.strerror}: it has {megabytes(len(obj))} '
                f'and {free_space(path)}. Checkpoints that were written '
                'before are whole: make room and go on with --resume.'
            ) from error

    def put_text(self, obj: str, filepath, encoding: str = 'utf-8') -> None:
        """Write the text ``obj`` to ``filepath``."""
        self.put(obj.encode(encoding), filepath)


def free_space(path: str) -> str:
    """What is left on the disk of ``path``, to be put into a sentence."""
    folder = osp.dirname(osp.abspath(path))
    free = shutil.disk_usage(folder).free
    return f'{folder} has {megabytes(free)} free'


def megabytes(size: int) -> str:
    """``size`` bytes as a text."""
    return f'{size / MEGABYTE:,.1f} MB'


def remove_leftovers(folder: str, templates: Sequence[str]) -> List[str]:
    """Remove what killed writes have left in ``folder``.

    Args:
        folder (str): Of checkpoints, of one run.
        templates (sequence[str]): Names of the files that the run writes;
            ``{}`` stands for anything.

    Returns:
        list[str]: The names of the removed files.
    """
    removed = []
    for name in sorted(os.listdir(folder)) if osp.isdir(folder) else ():
        for template in templates:
            stem, extension = map(_pattern, osp.splitext(template))
            # The names that write_atomically gives to unfinished files.
            if re.fullmatch(rf'\.{stem}\.\d+{extension}', name):
                os.remove(osp.join(folder, name))
                removed.append(name)
                break
    return removed


def _pattern(template: str) -> str:
    return re.escape(template).replace(r'\{\}', '.+')
