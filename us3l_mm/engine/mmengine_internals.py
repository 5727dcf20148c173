# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""All private attributes of MMEngine that this package uses."""
import os.path as osp
from collections import deque
from typing import Any, List, Optional

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import BaseLoop, Runner

from us3l_mm.fileio import WholeFileBackend
from us3l_mm.fileio.finding import POINTER


def built_loop(runner: Runner, stage: str) -> Optional[BaseLoop]:
    """The loop of 'train', 'val' or 'test', if the Runner has built it.

    Reading the public ``runner.train_loop`` builds the loop and its data set.
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

    The Runner would take the file that ``last_checkpoint`` names, readable or
    not, and its arguments have been read when the first hook is called.
    """
    runner._load_from, runner._resume = path, path is not None


class SaveThenRemove(CheckpointHook):
    """A ``CheckpointHook`` that removes old files after it has saved new ones.

    MMEngine removes first, so a run that is killed in between may be left
    without a checkpoint. It also writes ``last_checkpoint`` in place, so that
    a killed run may leave it empty. Both happen inside private methods.
    """

    file_backend: Any

    def _save_checkpoint_with_step(self, runner: Runner, step: int,
                                   meta: dict) -> None:
        """Save, then write ``last_checkpoint``, then remove old files."""
        ids = [*getattr(self, 'keep_ckpt_ids', ())]
        if ids[-1:] != [step]:
            ids.append(step)
        if self.max_keep_ckpts > 0:
            # With the old ones, which a run that is killed before it removes
            # them removes after it resumes.
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
        outdated: List[str] = []
        backend.remove = outdated.append  # shadows the method meanwhile
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            del backend.remove
        best = runner.message_hub.runtime_info
        for path in outdated:
            if path not in (best[key] for key in best
                            if key.startswith('best_ckpt')):
                backend.remove(path)
