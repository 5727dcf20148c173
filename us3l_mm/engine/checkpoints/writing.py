# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Files of the Runner, written as a whole or not at all."""
import errno
import os
import os.path as osp
import re
import shutil
from typing import List, Sequence

from mmengine.fileio import LocalBackend, register_backend

from us3l_mm.export.checkpoint_io import save_atomically

# A full disk, a full quota, a file longer than the process may write.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MEGABYTE = 1e6


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
