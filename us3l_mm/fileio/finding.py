# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Finding the checkpoint to resume from."""
import os
import os.path as osp
import re
from typing import (Any, Callable, Iterator, List, Optional, Sequence, Tuple)

from torch import Tensor

from .reading import CodeInFileError, is_broken, load_weights

POINTER = 'last_checkpoint'
TEMPLATES = ('epoch_{}.pth', 'iter_{}.pth')


def find_checkpoint(work_dir: str, folders: Sequence[str] = (),
                    templates: Sequence[str] = TEMPLATES,
                    say: Callable[[str], None] = print) -> Optional[str]:
    """The newest checkpoint of a run that can be read.

    The one that ``last_checkpoint`` names comes first, then the others from
    new to old. Each is read to its last byte, with checksums.

    Args:
        work_dir (str): The work dir of the run, with ``last_checkpoint``.
        folders (sequence[str]): Other folders of its checkpoints.
        templates (sequence[str]): Names of its checkpoints, with ``{}`` for
            the number.
        say (callable): A function that reports each file that is skipped.

    Returns:
        str, optional: The file; None if the run has written none.

    Raises:
        ValueError: If none of several checkpoints can be read, or if one would
            execute code: it is not damaged, and skipping it would lose what
            was trained.
    """
    candidates = _newest_first([work_dir, *folders], templates)
    named = _named_by_pointer(work_dir)
    if named is not None:
        if not osp.isfile(named):  # perhaps the folder was moved as a whole
            moved = osp.join(work_dir, osp.basename(named))
            if not osp.isfile(moved):
                say(f'{osp.join(work_dir, POINTER)} names {named}, and there '
                    'is no such file.')
            named = moved
        rest = [path for path in candidates if path != osp.abspath(named)]
        candidates = [named] * osp.isfile(named) + rest
    for path in candidates:
        reason = _defect(path)
        if reason is None:
            return path
        say(f'Passed over: {reason}')
    if candidates:
        raise ValueError(
            f'None of the {len(candidates)} checkpoints in {work_dir} can be '
            'read, so there is nothing to resume from. To start from scratch, '
            'leave out --resume or take another work dir.')
    return None


def _named_by_pointer(work_dir: str) -> Optional[str]:
    pointer = osp.join(work_dir, POINTER)
    if not osp.isfile(pointer):
        return None
    with open(pointer, errors='replace') as file:
        # Empty after a crash of the file system, if MMEngine wrote it.
        return file.read().strip('\0 \n') or None


def _newest_first(folders: Sequence[str],
                  templates: Sequence[str]) -> List[str]:
    """All checkpoints, by number if they are of one kind, else by time."""
    patterns = [
        re.compile(re.escape(t).replace(r'\{\}', r'(\d+)'))
        for t in dict.fromkeys(templates)]
    found = {}
    for folder in dict.fromkeys(map(osp.abspath, folders)):
        for name in os.listdir(folder) if osp.isdir(folder) else ():
            for pattern in patterns:
                match = pattern.fullmatch(name)
                if match and osp.isfile(osp.join(folder, name)):
                    found[osp.join(folder, name)] = (pattern,
                                                     int(match.group(1)))
    several = len({pattern for pattern, _ in found.values()}) > 1

    def age(path: str):
        number = found[path][1]
        return (os.stat(path).st_mtime_ns, number) if several else number

    return sorted(found, key=age, reverse=True)


def _defect(path: str) -> Optional[str]:
    """What is wrong with the file at ``path``; None if it is whole."""
    try:
        check_resumable(path, load_weights(path))
    except CodeInFileError:
        raise
    except (ValueError, OSError) as error:
        return str(error)
    return None


def check_resumable(path: str, content: dict) -> None:
    """Refuse to go on from a file that no training run wrote as it should.

    Args:
        path (str): The file, to name it.
        content (dict): What :func:`load_weights` returned for it.

    Raises:
        ValueError: If the file does not say at which iteration it was
            written, or if the state of its optimizer is not finite.
    """
    if 'iter' not in content['meta']:
        raise ValueError(
            f'{path} has weights but does not say at which iteration they '
            'were saved, so training cannot go on from it. Start from its '
            'weights by --cfg-options load_from=FILE, without --resume.')
    for name, value in _tensors(content.get('optimizer'), 'optimizer', set()):
        if is_broken(name, value):
            raise ValueError(
                f'{path} cannot be resumed from: {name} is NaN or infinite. '
                'Take an earlier checkpoint.')


def _tensors(value: Any, name: str, seen: set) -> Iterator[Tuple[str, Tensor]]:
    """All tensors in nested dicts, each with its dotted name."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict) and id(value) not in seen:
        seen.add(id(value))
        for key, child in value.items():
            yield from _tensors(child, f'{name}.{key}', seen)


def checkpoint_of(run: str) -> str:
    """The checkpoint that ``run`` names: a file, or the newest of a folder.

    Raises:
        FileNotFoundError: If a folder has no checkpoint.
    """
    if not osp.isdir(run):
        return run
    found = find_checkpoint(run)
    if found is None:
        raise FileNotFoundError(
            f'{run} has no checkpoint. It is a folder, but not that of a run '
            '(its --out or work dir). Name one, or a checkpoint file.')
    return found
