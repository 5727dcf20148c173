# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""All private attributes of MMEngine that this package uses."""
import os.path as osp
from collections import deque
from typing import List, Optional

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import BaseLoop, Runner

from us3l_mm.fileio import WholeFileBackend
from us3l_mm.fileio.finding import POINTER


def built_loop(runner: Runner, stage: str) -> Optional[BaseLoop]:
    """The loop of 'train', 'val' or 'test', if the Runner has built it.

    The public ``runner.train_loop`` and its like build the loop, and with it
    the data set, when they are read.
    """
    loop = getattr(runner, f'_{stage}_loop')
    return loop if isinstance(loop, BaseLoop) else None


def is_resuming(runner: Runner) -> bool:
    """Whether the Runner resumes a run, rather than loads weights alone.

    ``resume`` is an argument of the Runner without a public attribute, and
    ``runner.cfg`` is empty for a Runner that was built without a config.
    """
    return runner._resume


def start_file(runner: Runner) -> Optional[str]:
    """The checkpoint that the Runner loads or resumes.

    ``load_from`` is an argument without a public attribute, as above.
    """
    return runner._load_from


def set_start_file(runner: Runner, path: Optional[str]) -> None:
    """Resume from ``path``; None starts from scratch.

    Left to itself, the Runner takes the file that ``last_checkpoint`` names,
    readable or not. No hook and no argument replaces that choice, and the
    arguments have been read when the first hook is called.
    """
    runner._load_from, runner._resume = path, path is not None


class SaveThenRemove(CheckpointHook):
    """A ``CheckpointHook`` that removes old files after it has saved new ones.

    MMEngine removes first, and a run that is killed in between is left with
    one checkpoint less, or with none. It also writes ``last_checkpoint`` in
    place, so that a killed run leaves it empty. Both happen inside of private
    methods, around the call that saves.
    """

    def _save_checkpoint_with_step(self, runner: Runner, step: int,
                                   meta: dict) -> None:
        """Save, then point to the file, then remove what is outdated."""
        ids = [*getattr(self, 'keep_ckpt_ids', ())]
        if ids[-1:] != [step]:
            ids.append(step)
        if self.max_keep_ckpts > 0:
            # With the outdated ones: a run that is killed before it removes
            # them does so when it resumes.
            runner.message_hub.update_info('keep_ckpt_ids', ids)
        path = self._path(step)
        runner.message_hub.update_info('last_ckpt', path)
        runner.call_hook('before_gather_state')  # on all processes
        runner.save_checkpoint(self.out_dir, self.filename_tmpl.format(step),
                               self.file_client_args,
                               save_optimizer=self.save_optimizer,
                               save_param_scheduler=self.save_param_scheduler,
                               meta=meta, by_epoch=self.by_epoch,
                               backend_args=self.backend_args, **self.args)
        self.last_ckpt = path
        if is_main_process():
            WholeFileBackend().put_text(path, osp.join(runner.work_dir,
                                                       POINTER))
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = deque(ids, self.max_keep_ckpts)
            runner.message_hub.update_info('keep_ckpt_ids',
                                           [*self.keep_ckpt_ids])
            for old in map(self._path, ids[:-self.max_keep_ckpts]):
                if is_main_process() and self.file_backend.isfile(old):
                    self.file_backend.remove(old)

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(self.out_dir,
                                           self.filename_tmpl.format(step))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """Save as MMEngine does, and remove the previous best afterwards."""
        backend = self.file_backend
        self.file_backend = later = _RemoveLater(backend)
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        best = runner.message_hub.runtime_info
        for path in later.removed:
            if path not in (best[key] for key in best
                            if key.startswith('best_ckpt')):
                backend.remove(path)


class _RemoveLater:
    """A file backend that notes the files to remove."""

    def __init__(self, backend):
        self._backend = backend
        self.removed: List[str] = []

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        """Note ``path``."""
        self.removed.append(path)
